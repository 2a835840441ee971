-- audit: who changed what. A script calls it beside the change itself, after its checks: then there is an entry for
-- every change, and none for what was refused or replayed. Needs base.

-- `entry` is the map that `shared.audit.entry` makes: action, tenant (whose), details (JSON text, never a secret); and
-- where there is one key or resource (which), actor (id of the key that asked, or 'system'), actor_tenant, request. nil:
-- no entry. `history` is a stream that keeps it too, with the newest 10,000 others.
local function audit(entry, history)
  if not entry then return end
  local flat = {'at', NOW}
  for _, name in ipairs({'actor', 'actor_tenant', 'request', 'action', 'tenant', 'key', 'resource', 'details'}) do
    if entry[name] then
      flat[#flat + 1] = name
      flat[#flat + 1] = entry[name]
    end
  end
  redis.call('XADD', P .. 'audit', 'MAXLEN', '~', 1000000, '*', unpack(flat))
  if history then redis.call('XADD', history, 'MAXLEN', '~', 10000, '*', unpack(flat)) end
end
