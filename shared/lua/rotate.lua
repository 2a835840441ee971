-- rotate: gives an API key a new secret; the one so far lives on for a while, one that was replaced before it ends now.
-- KEYS  1 key   2 the tenant's record   3 idempotency key (any name when none was sent)
-- ARGV  prefix, id, tenant, hash (of the new secret), overlap_ms (0: the one so far ends now), audit (its entry),
--       idem_body
-- Returns {'ok', '0' or '1' replayed}   {'none'} no such key of this tenant   {'admin'} it is the admin key
--         {'expired'} the key is over   {'mismatch'} the idempotency key stands for another body
--@include base
--@include audit
--@include keys
local again = replay(KEYS[3])
if again then
  if again[1] == 'ok' then again[2] = '1' end
  return again
end
local row = redis.call('HMGET', KEYS[1], 'tenant', 'hash', 'expires_ms')
if row[1] ~= a.tenant then return {'none'} end
if is_admin_key(KEYS[2], a.id) then return {'admin'} end
if row[3] and tonumber(row[3]) <= now then return {'expired'} end
if a.overlap_ms > 0 then
  redis.call('HSET', KEYS[1], 'hash', a.hash, 'old_hash', row[2], 'old_until_ms', int(now + a.overlap_ms))
else
  redis.call('HSET', KEYS[1], 'hash', a.hash)
  redis.call('HDEL', KEYS[1], 'old_hash', 'old_until_ms')
end
audit(a.audit)
tell_key(KEYS[1], a.id)
local reply = {'ok', '0'}
remember(KEYS[3], reply)
return reply
