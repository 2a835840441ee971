-- instate: makes an existing key the admin key of this installation, with this secret and these scopes, and ends the one
-- before it. What is so already is left alone.
-- KEYS  1 key   2 the tenant's index of keys   3 the tenant's record
-- ARGV  prefix, id, tenant, hash, scopes, rotated, revoked (entries for the audit log; the latter without its key)
-- Returns 'ok'   'foreign' the key is another tenant's
--@include base
--@include audit
--@include keys
local row = redis.call('HMGET', KEYS[1], 'tenant', 'hash')
if row[1] ~= a.tenant then return 'foreign' end
redis.call('HSET', KEYS[1], 'scopes', a.scopes)
redis.call('HDEL', KEYS[1], 'expires_ms')
if row[2] ~= a.hash then
  redis.call('HSET', KEYS[1], 'hash', a.hash)
  redis.call('HDEL', KEYS[1], 'old_hash', 'old_until_ms', 'unused')
  audit(a.rotated)
  tell_key(KEYS[1], a.id)
end
local before = redis.call('HGET', KEYS[3], 'admin_key')
redis.call('HSET', KEYS[3], 'admin_key', a.id)
if before and before ~= a.id and redis.call('DEL', P .. 'key:' .. before) == 1 then
  redis.call('ZREM', KEYS[2], before)
  a.revoked.key = before
  audit(a.revoked)
  tell_key(P .. 'key:' .. before, before)
end
return 'ok'
