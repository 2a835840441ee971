-- finish_step: writes a call's result and usage and their events in one step. Usage is booked once per call id, also
-- when the lease was lost meanwhile (then as wasted, and the result is not kept). Safe to repeat.
-- KEYS  1 job record   2 job journal   3 the job's calls under way   4 the parts of its output
-- ARGV  prefix, job, worker, lease, step, label, call (id of this call), result (JSON; absent = the call failed),
--       tok_in, tok_out, tok_embed, estimated (bool), wasted (tokens of these that bought nothing),
--       cost_nano (nano-USD; absent: unknown), model, price_version (absent with cost_nano),
--       input_bytes (of what was counted as input; 0: nothing is to be learned),
--       keep_mark (bool: without a result the step stays marked as started),
--       part (number from 0) and part_value ('<size_bytes> <blob key>'): the part of the output that the result stands
--       for; absent where there is none
-- Returns {1 written | 0 the lease is lost | 2 this call was booked before, soft limits that it was the first to cross:
--         JSON list}
-- Events job.usage, job.step, job.warning (a soft limit)
--@include base
--@include queue
--@include limits
--@include hooks
--@include books
--@include job
local holds = holds_lease(KEYS[1], a.worker, a.lease)
if redis.call('EXISTS', KEYS[1]) == 0 then return {0, '[]'} end
local mark = redis.call('HGET', KEYS[2], 'call:' .. a.call)
if mark == 'exact' then return {2, '[]'} end
local job = read(KEYS[1], {}, BOOKED)
local total = a.tok_in + a.tok_out + a.tok_embed
local wasted = holds and a.wasted or total
local call = {id = a.call, step = a.label, model = a.model, version = a.price_version, estimated = a.estimated}
local open = redis.call('HGET', KEYS[3], a.call)
if open then
  redis.call('HDEL', KEYS[3], a.call, a.call .. ':o')
  let_go(cjson.decode(open), total, job.tenant)
end
if mark then
  -- The call was taken for lost and an estimate was booked: the difference is.
  local booked = cjson.decode(mark)
  call.correction = true
  local nano = nil
  if a.cost_nano then nano = a.cost_nano - (booked.n or 0) end
  book(a.job, KEYS[1], job, call, a.tok_in - booked.i, a.tok_out - booked.o, a.tok_embed - booked.e,
    wasted - (booked.i + booked.o + booked.e), nano)
  if total < booked.i + booked.o + booked.e then budget_freed(job.tenant) end
elseif total > 0 then
  book(a.job, KEYS[1], job, call, a.tok_in, a.tok_out, a.tok_embed, wasted, a.cost_nano)
end
if open or mark or total > 0 then redis.call('HSET', KEYS[2], 'call:' .. a.call, 'exact') end
if not a.estimated and total > 0 then
  if a.result and a.tok_out > 0 then learn_output(job.tenant, job.type or '', a.model, a.tok_out, true) end
  local input = a.tok_in + a.tok_embed
  if a.input_bytes > 0 and input > 0 and a.input_bytes / input <= 20 then
    local before = redis.call('HGET', P .. 'ratios', a.model)
    if before or redis.call('HLEN', P .. 'ratios') < MOST_KINDS then
      local now_ratio = tonumber(before or a.input_bytes / input) * 0.9 + a.input_bytes / input * 0.1
      redis.call('HSET', P .. 'ratios', a.model, string.format('%.4f', now_ratio))
    end
  end
end
local warned = #WARNED > 0 and cjson.encode(WARNED) or '[]'
if not holds then return {0, warned} end
-- What costs nothing has no mark of its call: that it was written before shows in its step.
local known = redis.call('HGET', KEYS[2], a.step)
known = known and cmsgpack.unpack(known)
if known and known.result ~= nil then return {2, warned} end
if not known and not a.result and not a.keep_mark and total == 0 then return {2, warned} end
local state = 'failed'
if a.result then
  redis.call('HSET', KEYS[2], a.step, cmsgpack.pack({result = a.result, tokens = total - a.wasted}))
  if a.part then redis.call('HSET', KEYS[4], int(a.part), a.part_value) end
  state = 'finished'
elseif not a.keep_mark then
  redis.call('HDEL', KEYS[2], a.step)
end
if total > 0 or mark then
  local u = redis.call('HMGET', KEYS[1], 'tok_in', 'tok_out', 'tok_embed', 'tok_reused', 'tok_wasted', 'estimated', 'cost_nano')
  for i = 1, 6 do u[i] = tonumber(u[i] or '0') end
  local cost = u[7] and string.format('%.9f', tonumber(u[7]) / 1000000000) or 'null'
  emit(a.job, 'job.usage', '{"inputTokens":' .. int(u[1]) .. ',"outputTokens":' .. int(u[2]) .. ',"embeddingTokens":' ..
    int(u[3]) .. ',"totalTokens":' .. int(u[1] + u[2] + u[3]) .. ',"reusedTokens":' .. int(u[4]) ..
    ',"wastedTokens":' .. int(u[5]) .. ',"costUsd":' .. cost .. ',"estimated":' .. tostring(u[6] > 0) .. '}')
end
emit(a.job, 'job.step', '{"step":' .. cjson.encode(a.label) .. ',"state":"' .. state .. '","reused":false}')
return {1, warned}
