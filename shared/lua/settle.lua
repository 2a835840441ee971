-- settle: ends an attempt, for the owner of the lease only.
-- KEYS  1 job record
-- ARGV  prefix, job, worker, lease,
--       outcome: complete | failed | cancelled | retry | handback
--       result (JSON, for complete), error (JSON, for failed and retry), delay_ms (for retry),
--       upstream_closed (bool, for cancelled: a model's connection was open and is closed now),
--       tokens_at_request (for cancelled: the job's tokens, calls under way included, when the worker heard of it)
-- Returns {'ok', the job's new status}   {'again'} this lease was settled before   {'lost'} the lease is lost
-- Events job.complete | job.failed | job.cancelled | job.waiting | job.queued
--@include base
--@include queue
--@include job
local key = KEYS[1]
if redis.call('HGET', key, 'settled') == tostring(a.lease) then return {'again'} end
if not holds_lease(key, a.worker, a.lease) then return {'lost'} end
local row = redis.call('HMGET', key, 'status', 'tenant', 'lane', 'score')
release(a.job, key)
redis.call('HSET', key, 'settled', a.lease)
local outcome = a.outcome
-- A cancellation that was accepted stands, whatever the attempt came to in the meantime.
if row[1] == 'cancelling' then
  outcome = 'cancelled'
elseif outcome == 'cancelled' then
  -- Nobody asked for it (any more): the attempt goes on elsewhere.
  outcome = 'handback'
end
if outcome == 'complete' then
  redis.call('HSET', key, 'result', a.result)
  redis.call('HDEL', key, 'error')
  finish(a.job, key, 'complete', '{}')
elseif outcome == 'failed' then
  redis.call('HSET', key, 'error', a.error)
  finish(a.job, key, 'failed', '{"error":' .. a.error .. '}')
elseif outcome == 'cancelled' then
  if a.tokens_at_request > tonumber(redis.call('HGET', key, 'cancel_tokens')) then
    redis.call('HSET', key, 'cancel_tokens', int(a.tokens_at_request))
  end
  if a.upstream_closed then
    redis.call('HSET', key, 'upstream_closed_ms', int(now - tonumber(redis.call('HGET', key, 'cancel_ms'))))
  end
  finish(a.job, key, 'cancelled', '{}')
elseif outcome == 'retry' then
  redis.call('HSET', key, 'status', 'waiting', 'wait_reason', 'backoff', 'error', a.error, 'due_ms', int(now + a.delay_ms))
  redis.call('ZADD', P .. 'delayed:' .. row[3], now + a.delay_ms, a.job)
  emit(a.job, 'job.waiting', '{"kind":"backoff","delaySeconds":' .. string.format('%.3f', a.delay_ms / 1000) ..
    ',"error":' .. a.error .. '}')
  redis.call('PUBLISH', P .. 'wake:' .. row[3], '1')
else
  redis.call('HSET', key, 'status', 'queued', 'queued_ms', int(now), 'handed_back', 1)
  emit(a.job, 'job.queued', '{"reason":"handback"}')
  queue_push(a.job, row[3], row[2], tonumber(row[4]))
end
return {'ok', redis.call('HGET', key, 'status')}
