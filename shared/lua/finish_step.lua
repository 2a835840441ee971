-- finish_step: writes a call's result and usage and their events in one step. Usage is booked once per call id,
-- also when the lease was lost meanwhile (then as wasted, and the result is not kept). Safe to repeat.
-- KEYS  1 job record   2 job journal   3 the job's calls under way   4 the parts of its output
-- ARGV  prefix, job, worker, lease, step, label, call (id of this call), result (JSON; absent = the call failed),
--       tok_in, tok_out, tok_embed, estimated (bool), wasted (tokens of these that bought nothing),
--       keep_mark (bool: without a result the step stays marked as started),
--       part (number from 0) and part_value ('<size_bytes> <blob key>'): the part of the output that the result stands
--       for; absent where there is none
-- Returns 1 written   0 the lease is lost   2 this call was booked before
-- Events job.usage, job.step
--@include base
--@include queue
--@include job
local holds = holds_lease(KEYS[1], a.worker, a.lease)
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local booked = redis.call('HGET', KEYS[2], 'call:' .. a.call)
if booked == 'exact' then return 2 end
if booked then
  -- The call was taken for lost and an estimate was booked: take that back.
  local tokens, field = estimate_of(booked)
  redis.call('HINCRBY', KEYS[1], field, int(0 - tonumber(tokens)))
  redis.call('HINCRBY', KEYS[1], 'tok_wasted', int(0 - tonumber(tokens)))
  redis.call('HINCRBY', KEYS[1], 'estimated', -1)
end
redis.call('HDEL', KEYS[3], a.call)
redis.call('HSET', KEYS[2], 'call:' .. a.call, 'exact')
local total = a.tok_in + a.tok_out + a.tok_embed
redis.call('HINCRBY', KEYS[1], 'tok_in', a.tok_in)
redis.call('HINCRBY', KEYS[1], 'tok_out', a.tok_out)
redis.call('HINCRBY', KEYS[1], 'tok_embed', a.tok_embed)
redis.call('HINCRBY', KEYS[1], 'tok_wasted', holds and a.wasted or total)
if a.estimated then redis.call('HINCRBY', KEYS[1], 'estimated', 1) end
if not holds then return 0 end
local u = redis.call('HMGET', KEYS[1], 'tok_in', 'tok_out', 'tok_embed', 'tok_reused', 'tok_wasted', 'estimated')
for i = 1, 6 do u[i] = tonumber(u[i] or '0') end
local state = 'failed'
if a.result then
  redis.call('HSET', KEYS[2], a.step, cmsgpack.pack({result = a.result, tokens = total - a.wasted}))
  if a.part then redis.call('HSET', KEYS[4], int(a.part), a.part_value) end
  state = 'finished'
elseif not a.keep_mark then
  redis.call('HDEL', KEYS[2], a.step)
end
if total > 0 then
  emit(a.job, 'job.usage', '{"inputTokens":' .. int(u[1]) .. ',"outputTokens":' .. int(u[2]) .. ',"embeddingTokens":' ..
    int(u[3]) .. ',"totalTokens":' .. int(u[1] + u[2] + u[3]) .. ',"reusedTokens":' .. int(u[4]) ..
    ',"wastedTokens":' .. int(u[5]) .. ',"costUsd":null,"estimated":' .. tostring(u[6] > 0) .. '}')
end
emit(a.job, 'job.step', '{"step":' .. cjson.encode(a.label) .. ',"state":"' .. state .. '","reused":false}')
return 1
