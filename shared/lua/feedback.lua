-- feedback: what somebody thinks of a job's result. The newest hundred are kept word for word, all are counted.
-- KEYS  1 job record   2 the job's feedback   3 idempotency key (any name when none was sent)
-- ARGV  prefix, tenant, score_milli (-1000 to 1000), comment (optional), key (id of the API key), idem_body
-- Returns {'ok', count, sum of scores in thousandths, now ms, '0' or '1' replayed}   {'none'} no such job of this tenant
--         {'state', status} it has not started yet   {'mismatch'} the idempotency key stands for another body
--@include base
--@include limits
--@include outcomes
local again = replay(KEYS[3])
if again then
  if again[1] == 'ok' then again[5] = '1' end
  return again
end
local row = redis.call('HMGET', KEYS[1], 'tenant', 'status', 'attempt', 'prompt', 'exp', 'arm', 'exp_unit')
if row[1] ~= a.tenant then return {'none'} end
if row[3] == '0' then return {'state', row[2]} end
local entry = {score = a.score_milli / 1000, at = now, key = a.key}
if a.comment then entry.comment = a.comment end
redis.call('LPUSH', KEYS[2], cmsgpack.pack(entry))
redis.call('LTRIM', KEYS[2], 0, 99)
local count = redis.call('HINCRBY', KEYS[1], 'fb_count', 1)
local sum = redis.call('HINCRBY', KEYS[1], 'fb_milli', a.score_milli)
if row[4] and row[4] ~= '' then
  local figures, field = figures_of(row[1], row[4])
  redis.call('HINCRBY', figures, field .. 'fn', 1)
  redis.call('HINCRBY', figures, field .. 'fs', a.score_milli)
  if row[5] and row[5] ~= '' then
    -- Of one job there may be several.
    local unit = unit_mark(row[1], row[7]) or string.sub(redis.sha1hex(KEYS[1]), 1, 20)
    observe(row[5], row[6], unit, 'feedback', a.score_milli / 1000)
  end
end
local reply = {'ok', int(count), int(sum), NOW, '0'}
remember(KEYS[3], reply)
return reply
