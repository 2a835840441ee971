-- audit: who changed what. A script calls it beside the change itself, after its checks: then there is an entry for
-- every change, and none for what was refused or replayed. Needs base.

-- `entry` is the map that `shared.audit.entry` makes: action, tenant (whose), details (JSON text, never a secret); and
-- where there is one key (which) or prompt (its name), actor (id of the key that asked, or 'system'), actor_tenant, request. nil: no entry.
local function audit_fields(entry)
  local flat = {'at', NOW}
  for _, name in ipairs({'actor', 'actor_tenant', 'request', 'action', 'tenant', 'key', 'prompt', 'details'}) do
    if entry[name] then
      flat[#flat + 1] = name
      flat[#flat + 1] = entry[name]
    end
  end
  return flat
end

local function audit(entry)
  if not entry then return end
  redis.call('XADD', P .. 'audit', 'MAXLEN', '~', 1000000, '*', unpack(audit_fields(entry)))
end
