-- reconcile: what the books say of some scopes, of a day or of some jobs, and where the ledger ends at that instant. Writes
-- nothing. What is asked for is one of `scopes`, `day`, `jobs` and `holds`.
-- KEYS  1 the tenant's ledger
-- ARGV  prefix, tenant, scopes (ids of scopes), day (YYYYMMDD), jobs (job ids), holds (true: scopes that anything is
--       reserved in for this tenant's calls)
-- Returns {id of the ledger's last entry or '0-0', now ms, list:
--         of each scope {d, m, dt, dn, mt, mn, tt, tn, ht, hn as stored ('' where absent), tokens and nano-USD of the
--         holds in it}; or of the day its fields and values; or of each job {tenant, tok_in, tok_out, tok_embed,
--         tok_wasted, cost_nano, tok_unpriced, estimated}, '' where absent; or scope ids}
--@include base
--@include holds
local function values(key, names)
  local found = redis.call('HMGET', key, unpack(names))
  for place = 1, #names do found[place] = found[place] or '' end
  return found
end

local list = {}
if a.scopes then
  local held = held_now()
  for place, id in ipairs(a.scopes) do
    local row = values(P .. 'books:' .. id, {'d', 'm', 'dt', 'dn', 'mt', 'mn', 'tt', 'tn', 'ht', 'hn'})
    local sum = held[id] or {0, 0}
    row[11], row[12] = int(sum[1]), int(sum[2])
    list[place] = row
  end
elseif a.day then
  list = redis.call('HGETALL', P .. 'usage:' .. a.tenant .. ':' .. a.day)
elseif a.jobs then
  for place, id in ipairs(a.jobs) do
    list[place] = values(P .. 'job:' .. id, {'tenant', 'tok_in', 'tok_out', 'tok_embed', 'tok_wasted', 'cost_nano',
      'tok_unpriced', 'estimated'})
  end
elseif a.holds then
  for id in pairs(held_now(a.tenant)) do list[#list + 1] = id end
end
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
return {last[1] and last[1][1] or '0-0', NOW, list}
