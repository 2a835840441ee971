-- begin_step: looks a step up in the journal before its call is made, and marks it as started. Safe to repeat.
-- KEYS  1 job record   2 job journal   3 the job's calls under way
-- ARGV  prefix, job, worker, lease, step (name and input hash), label (for events), call (id of this call),
--       tokens (estimate of the input, booked by `release` if the worker is lost), embeds (bool: these are to be
--       embedded), once (bool: a step that was started and not finished is not started again), again_after (call id:
--       unless it was started as this one)
-- Returns {'done', result} finished before, do not call   {'new'} marked as started   {'lost'} the lease is lost
--         {'unsure', call id} started before, end unknown
-- Events job.step (started, or finished and reused)
--@include base
--@include queue
--@include job
if not holds_lease(KEYS[1], a.worker, a.lease) then return {'lost'} end
local known = redis.call('HGET', KEYS[2], a.step)
if known then
  local entry = cmsgpack.unpack(known)
  if entry.result then
    if redis.call('HSETNX', KEYS[2], 'reused:' .. a.call, 1) == 1 then
      redis.call('HINCRBY', KEYS[1], 'tok_reused', entry.tokens)
      emit(a.job, 'job.step', '{"step":' .. cjson.encode(a.label) .. ',"state":"finished","reused":true}')
    end
    return {'done', entry.result}
  end
  if entry.call == a.call then return {'new'} end
  if a.once and entry.call ~= a.again_after then return {'unsure', entry.call} end
end
redis.call('HSET', KEYS[2], a.step, cmsgpack.pack({call = a.call}))
redis.call('HSET', KEYS[3], a.call, int(a.tokens) .. (a.embeds and 'e' or ''))
redis.call('HSET', KEYS[1], 'calls', 1)
emit(a.job, 'job.step', '{"step":' .. cjson.encode(a.label) .. ',"state":"started","reused":false}')
return {'new'}
