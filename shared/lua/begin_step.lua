-- begin_step: looks a step up in the journal before its call is made, and marks it as started.
-- KEYS  1 job record   2 job journal
-- ARGV  prefix, job, worker, lease, step (name and input hash), label (for events), call (id of this call),
--       tokens (estimate of the input)
-- Returns {'done', result} finished before, do not call   {'new'} marked as started   {'lost'} the lease is lost
-- Books  a call that was in flight when its worker died: the estimate, as wasted
-- Events job.step (reused)
--@include base
--@include queue
--@include job
if not holds_lease(KEYS[1], a.worker, a.lease) then return {'lost'} end
local known = redis.call('HGET', KEYS[2], a.step)
if known then
  local entry = cmsgpack.unpack(known)
  if entry.result then
    redis.call('HINCRBY', KEYS[1], 'tok_reused', entry.tokens)
    emit(a.job, 'job.step', '{"step":' .. cjson.encode(a.label) .. ',"state":"finished","reused":true}')
    return {'done', entry.result}
  end
  if entry.started then
    -- If that call's worker was only frozen, finish_step replaces the estimate by the true figure.
    redis.call('HSET', KEYS[2], 'call:' .. entry.call, int(entry.tokens))
    redis.call('HINCRBY', KEYS[1], 'tok_in', entry.tokens)
    redis.call('HINCRBY', KEYS[1], 'tok_wasted', entry.tokens)
    redis.call('HSET', KEYS[1], 'estimated', 1)
  end
end
redis.call('HSET', KEYS[2], a.step, cmsgpack.pack({started = true, tokens = a.tokens, call = a.call}))
return {'new'}
