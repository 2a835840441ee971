-- input: a person answers a job that waits for it; the same attempt goes on. The same answer again changes nothing.
-- KEYS  1 job record   2 job journal
-- ARGV  prefix, job, tenant, request (id of the question), value (JSON)
-- Returns {'ok'}   {'none'} no such job of this tenant   {'state', status} it waits for no input, or for another answer
--         {'answered'} this question has another answer
-- Events job.queued
--@include base
--@include queue
--@include job
local row = load(KEYS[1])
if row.tenant ~= a.tenant then return {'none'} end
local known = redis.call('HGET', KEYS[2], 'answer:' .. a.request)
if known then
  if known == a.value then return {'ok'} end
  return {'answered'}
end
local asked = redis.call('HMGET', KEYS[1], 'wait_reason', 'waiting')
if row.status ~= 'waiting' or asked[1] ~= 'input' or cjson.decode(asked[2]).requestId ~= a.request then
  return {'state', row.status}
end
load_more(KEYS[1], row)
redis.call('HSET', KEYS[2], 'answer:' .. a.request, a.value)
redis.call('HSET', KEYS[1], 'status', 'queued', 'queued_ms', NOW, 'wait_reason', '', 'waiting', '', 'handed_back', 1, 'told', '')
emit(a.job, 'job.queued', '{"reason":"input"}')
queue_push(a.job, row.lane, row.tenant, tonumber(row.score), tonumber(row.est or '0'))
return {'ok'}
