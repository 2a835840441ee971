-- change: changes the record of a tenant or of an API key, if it is still what the caller has read.
-- KEYS  1 record   2 the tenant's record (the same for a tenant)
-- ARGV  prefix, id (of the key; absent for a tenant), tenant, expected (map of fields, '' where there is none),
--       fields (map, '' removes one), limits (true: these are others now), audit (its entry),
--       keeps_admin (true: the admin key may be changed so)
-- Returns 'ok'   'none' there is no such record   'deleting' its tenant is being deleted   'stale' it was changed meanwhile
--         'admin' it is the admin key
--@include base
--@include queue
--@include audit
--@include keys
if redis.call('HEXISTS', KEYS[2], 'deleting') == 1 then return 'deleting' end
if redis.call('EXISTS', KEYS[1]) == 0 then return 'none' end
for field, value in pairs(a.expected) do
  if (redis.call('HGET', KEYS[1], field) or '') ~= value then return 'stale' end
end
if a.id and not a.keeps_admin and is_admin_key(KEYS[2], a.id) then return 'admin' end
for field, value in pairs(a.fields) do
  if value == '' then
    redis.call('HDEL', KEYS[1], field)
  else
    redis.call('HSET', KEYS[1], field, value)
  end
end
audit(a.audit)
if a.limits then
  redis.call('HINCRBY', KEYS[2], 'revision', 1)
  limits_changed(a.tenant)
end
if a.id then tell_key(KEYS[1], a.id) end
return 'ok'
