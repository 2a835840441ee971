-- rotate: gives an API key a new secret; the one so far lives on for a while, one that was replaced before it ends now.
-- When nobody has used the newest secret while the one before it still lives, the answer with it was probably lost: then it
-- is the newest that ends, and the other keeps the time that it was promised.
-- KEYS  1 key   2 the tenant's record   3 idempotency key (any name when none was sent)
-- ARGV  prefix, id, tenant, hash (of the new secret), overlap_ms (0: the one so far ends now), audit (its entry),
--       audit_replaced (the entry when an unused secret is replaced), idem_body
-- Returns {'ok', '0' or '1' replayed}   {'none'} no such key of this tenant   {'admin'} it is the admin key
--         {'deleting'} the tenant is being deleted   {'expired'} the key is over   {'mismatch'} the idempotency key stands for another body
--@include base
--@include audit
--@include keys
local again = replay(KEYS[3])
if again then
  if again[1] == 'ok' then again[2] = '1' end
  return again
end
if redis.call('HEXISTS', KEYS[2], 'deleting') == 1 then return {'deleting'} end
local row = redis.call('HMGET', KEYS[1], 'tenant', 'hash', 'expires_ms', 'unused', 'old_until_ms')
if row[1] ~= a.tenant then return {'none'} end
if is_admin_key(KEYS[2], a.id) then return {'admin'} end
if row[3] and tonumber(row[3]) <= now then return {'expired'} end
local is_replaced = a.overlap_ms > 0 and row[4] and tonumber(row[5] or '0') > now
redis.call('HSET', KEYS[1], 'hash', a.hash, 'unused', 1)
if a.overlap_ms <= 0 then
  redis.call('HDEL', KEYS[1], 'old_hash', 'old_until_ms')
elseif not is_replaced then
  redis.call('HSET', KEYS[1], 'old_hash', row[2], 'old_until_ms', int(now + a.overlap_ms))
end
audit(is_replaced and a.audit_replaced or a.audit)
tell_key(KEYS[1], a.id)
local reply = {'ok', '0'}
remember(KEYS[3], reply)
return reply
