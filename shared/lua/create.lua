-- create: stores a new record and its place in an index, once per idempotency key.
-- KEYS  1 record   2 index   3 idempotency key (any name when none was sent)   4 record that must exist (optional)
-- ARGV  prefix, id, fields (map), idem_body (hash of the body; absent = no key), audit (its entry, optional)
-- Returns {'ok', id, now ms, '0' or '1' replayed}   {'mismatch'}   {'exists'} the id is taken   {'none'} KEYS[4] is absent
--         {'deleting', its id} KEYS[4] is a tenant that is being deleted
--@include base
--@include audit
local again = replay(KEYS[3])
if again then
  if again[1] == 'ok' then again[4] = '1' end
  return again
end
if KEYS[4] then
  local parent = redis.call('HMGET', KEYS[4], 'id', 'deleting')
  if not parent[1] then return {'none'} end
  if parent[2] then return {'deleting', parent[1]} end
end
if redis.call('EXISTS', KEYS[1]) == 1 then return {'exists'} end
local flat = {'id', a.id, 'created_ms', int(now)}
for field, value in pairs(a.fields) do
  flat[#flat + 1] = field
  flat[#flat + 1] = value
end
redis.call('HSET', KEYS[1], unpack(flat))
redis.call('ZADD', KEYS[2], 0, a.id)
audit(a.audit)
local reply = {'ok', a.id, int(now), '0'}
remember(KEYS[3], reply)
return reply
