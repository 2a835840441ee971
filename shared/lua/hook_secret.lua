-- hook_secret: the secret that signs a tenant's deliveries, made at its first use; with `rotate` a new one, beside which
-- the one so far signs for a while.
-- KEYS  1 the secret   2 the tenant's record   3 idempotency key (any name when none was sent)
-- ARGV  prefix, fresh (a secret that nobody has), rotate (bool), overlap_ms, audit (its entry), idem_body
-- Returns {'ok', secret, since ms, until when the one before it signs too, ms, or '', '0' or '1' replayed}
--         {'none'} the tenant is gone, or being deleted   {'mismatch'}
--@include base
--@include audit
local again = replay(KEYS[3])
if again and again[1] ~= 'ok' then return again end
local owner = redis.call('HMGET', KEYS[2], 'id', 'deleting')
if not owner[1] or owner[2] then return {'none'} end
local row = redis.call('HMGET', KEYS[1], 'secret', 'created_ms', 'old_until_ms')
if not row[1] then
  row = {a.fresh, NOW, false}
  redis.call('HSET', KEYS[1], 'secret', a.fresh, 'created_ms', NOW)
  if a.rotate then audit(a.audit) end
elseif a.rotate and not again then
  redis.call('HSET', KEYS[1], 'secret', a.fresh, 'created_ms', NOW)
  if a.overlap_ms > 0 then
    redis.call('HSET', KEYS[1], 'old_secret', row[1], 'old_until_ms', int(now + a.overlap_ms))
    row = {a.fresh, NOW, int(now + a.overlap_ms)}
  else
    redis.call('HDEL', KEYS[1], 'old_secret', 'old_until_ms')
    row = {a.fresh, NOW, false}
  end
  audit(a.audit)
end
-- What is remembered of it holds no secret.
if a.rotate and not again then remember(KEYS[3], {'ok'}) end
local lives = row[3] and tonumber(row[3]) > now
return {'ok', row[1], row[2], lives and row[3] or '', again and '1' or '0'}
