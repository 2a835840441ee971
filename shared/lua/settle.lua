-- settle: ends attempts of one worker, each for the owner of its lease only.
-- KEYS  1 leases   2 jobs by the end of their retention
-- ARGV  prefix, worker, jobs: a list of {
--         job, lease,
--         outcome: complete | failed | cancelled | retry | input | handback
--         result (JSON, for complete), error (JSON, for failed and retry), delay_ms (for retry),
--         waiting (JSON, for input: requestId, kind, question),
--         upstream_closed (bool, for cancelled: a model's connection was open and is closed now),
--         tokens_at_request (for cancelled: the job's tokens, calls under way included, when the worker heard of it)}
-- Returns per job its new status, 'again' when this lease was settled before, 'lost' when it is not the worker's, or
--         'broken' when its record cannot be read
-- Events job.complete | job.failed | job.cancelled | job.waiting | job.queued
--@include base
--@include queue
--@include job
local function settle(job)
  local key = P .. 'job:' .. job.job
  local row = load(key)
  if row.settled == tostring(job.lease) then return 'again' end
  if not holds(row, a.worker, job.lease) then return 'lost' end
  if not sound(row) then return 'broken' end
  local outcome = job.outcome
  -- A cancellation that was accepted stands, whatever the attempt came to in the meantime.
  if row.status == 'cancelling' then
    outcome = 'cancelled'
  elseif outcome == 'cancelled' then
    -- Nobody asked for it (any more): the attempt goes on elsewhere.
    outcome = 'handback'
  end
  if outcome == 'handback' and may_restart(key) then
    hand_back(job.job, key, row)
    return 'queued'
  end
  local seq = tonumber(row.seq) + 1
  release(job.job, key, row)
  if outcome == 'complete' then
    note_run(row)
    finish(job.job, key, row, 'complete', '{}', 'settled', row.lease, 'result', job.result)
    return 'complete'
  elseif outcome == 'handback' then
    redis.call('HSET', key, 'settled', row.lease)
    fail_lost(job.job, key, row, 'The worker was stopped in the middle of the answer.')
    return 'failed'
  elseif outcome == 'failed' or (outcome == 'retry' and not may_restart(key)) then
    note_run(row)
    finish(job.job, key, row, 'failed', '{"error":' .. job.error .. '}', 'settled', row.lease, 'error', job.error)
    return 'failed'
  elseif outcome == 'cancelled' then
    load_more(key, row)
    local seen = math.max(job.tokens_at_request or 0, tonumber(row.cancel_tokens or '0'))
    if job.upstream_closed then
      redis.call('HSET', key, 'upstream_closed_ms', int(now - tonumber(row.cancel_ms)))
    end
    finish(job.job, key, row, 'cancelled', '{}', 'settled', row.lease, 'cancel_tokens', int(seen), 'cancelled_ms', NOW)
    return 'cancelled'
  elseif outcome == 'input' then
    redis.call('HSET', key, 'status', 'waiting', 'wait_reason', 'input', 'waiting', job.waiting, 'seq', seq,
      'settled', row.lease)
    emit_as(job.job, seq, 'job.waiting', job.waiting)
    return 'waiting'
  elseif outcome == 'retry' then
    local due = int(now + job.delay_ms)
    redis.call('HSET', key, 'status', 'waiting', 'wait_reason', 'backoff', 'error', job.error, 'due_ms', due, 'seq', seq,
      'settled', row.lease)
    redis.call('ZADD', P .. 'delayed:' .. row.lane, due, job.job)
    emit_as(job.job, seq, 'job.waiting', '{"kind":"backoff","delaySeconds":' ..
      string.format('%.3f', job.delay_ms / 1000) .. ',"error":' .. job.error .. '}')
    wake(row.lane)
    return 'waiting'
  end
end

local states = {}
-- Nothing is caught here: when Redis refuses (memory, disk), the first write fails and nothing was written.
for i, job in ipairs(a.jobs) do states[i] = settle(job) end
flush()
return states
