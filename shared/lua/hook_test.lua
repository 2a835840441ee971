-- hook_test: notes a delivery of the event webhook.test, which is tried once.
-- KEYS  1 idempotency key (any name when none was sent)   2 the tenant's record
-- ARGV  prefix, tenant, mark (of the URL's origin), url, keep_ms, random (16 characters of the id), idem_body
-- Returns {'ok', id of the delivery, '0' or '1' replayed}   {'none'} the tenant is gone, or being deleted   {'mismatch'}
--@include base
--@include hooks
local again = replay(KEYS[1])
if again then
  if again[1] == 'ok' then again[3] = '1' end
  return again
end
local owner = redis.call('HMGET', KEYS[2], 'id', 'deleting')
if not owner[1] or owner[2] then return {'none'} end
local id = 'dlv_' .. ulid_time() .. a.random
-- Somebody waits for it: whatever its endpoint was let alone for.
redis.call('DEL', P .. 'hook:' .. a.tenant .. ':' .. a.mark)
deliver(a.tenant, a.mark, id, 'webhook.test', now, a.url, a.keep_ms, {'once', 1, 'forced', 1})
local reply = {'ok', id, '0'}
remember(KEYS[1], reply)
return reply
