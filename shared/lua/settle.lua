-- settle: ends attempts of one worker, each for the owner of its lease only.
-- KEYS  1 leases   2 jobs by the end of their retention
-- ARGV  prefix, worker, jobs: a list of {
--         job, lease,
--         outcome: complete | failed | cancelled | retry | input | budget | delay | handback
--         result (JSON, for complete), error (JSON, for failed and retry), delay_ms (for retry, budget
--         and delay: until it is looked at again), due_ms (for budget, without delay_ms: when; absent: not by itself),
--         revision (for budget and delay: of the tenant's limits, when they were in the way),
--         reason (for delay: what its event names; absent: rateLimit), held (bool, for budget: what is left is only reserved for others),
--         waiting (JSON, for input: requestId, kind, question; for budget: kind and the limit),
--         upstream_closed (bool, for cancelled: a model's connection was open and is closed now),
--         tokens_at_request (for cancelled: the job's tokens, calls under way included, when the worker heard of it)}
-- Returns {per job its new status, 'again' when this lease was settled before, 'lost' when it is not the worker's, or
--         'broken' when its record cannot be read; soft limits that were crossed first here: JSON list}
-- Events job.complete | job.failed | job.cancelled | job.waiting | job.queued | job.warning (a soft limit)
--@include base
--@include queue
--@include limits
--@include hooks
--@include books
--@include outcomes
--@include job
-- Whether limits were changed since they were found in the way: then the job is looked at again at once.
local function limits_moved(tenant, revision)
  return revision and revision ~= (redis.call('HGET', P .. 'tenant:' .. tenant, 'revision') or '0')
end

local function tell_waiting(job_id, row, seq)
  if row.hook then hook(job_id, row.tenant, row.hook, seq, 'job.waiting') end
end

local function settle(job)
  local key = P .. 'job:' .. job.job
  local row = load(key)
  if row.settled == tostring(job.lease) then return 'again' end
  if not holds(row, a.worker, job.lease) then return 'lost' end
  if not sound(row) then return 'broken' end
  local outcome, held_up = job.outcome, false
  -- A cancellation that was accepted stands, whatever the attempt came to in the meantime.
  if row.status == 'cancelling' then
    outcome = 'cancelled'
  elseif outcome == 'cancelled' then
    -- Nobody asked for it (any more): the attempt goes on elsewhere.
    outcome = 'handback'
  end
  -- What may not begin anew cannot wait either.
  if (outcome == 'budget' or outcome == 'delay') and not may_restart(key) then outcome = 'failed' end
  if outcome == 'budget' then
    -- Somebody waits for a chat's answer; and some tenants would rather fail at a limit (others' reservations are none).
    local policy, grace = tenant_policy(row.tenant), redis.call('HGET', key, 'grace_ms')
    if (grace and grace ~= '') or (policy and policy.fail and not job.held) then outcome = 'failed' end
    held_up = outcome == 'failed' and job.held
  end
  if outcome == 'handback' and may_restart(key) then
    hand_back(job.job, key, row)
    return 'queued'
  end
  local start_by = outcome == 'delay' and redis.call('HGET', key, 'start_by_ms')
  -- A job that this worker's release cannot read may still be taken by another's, until its client is told that none did.
  if start_by and job.reason ~= 'release' and now + job.delay_ms > tonumber(start_by) and not limits_moved(row.tenant, job.revision) then
    outcome, held_up = 'failed', true
  end
  if held_up then
    -- A chat that cannot begin in time is refused like one at the door, unless it has cost something.
    read(key, row, BOOKED)
    read(key, row, {'tok_in', 'tok_out', 'tok_embed'})
    if tokens_of(row) == 0 then
      refund_request(scopes_of(tenant_policy(row.tenant), row.tenant, row.key, row.user, row.prompt))
      redis.call('HSET', key, 'not_begun', 1)
    end
  end
  release(job.job, key, row)
  local seq = tonumber(row.seq) + 1
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
    tell_waiting(job.job, row, seq)
    return 'waiting'
  elseif outcome == 'budget' then
    local due = job.due_ms and int(job.due_ms) or '+inf'
    if job.delay_ms then due = int(now + job.delay_ms) end
    if limits_moved(row.tenant, job.revision) then due = NOW end
    redis.call('HSET', key, 'status', 'waiting', 'wait_reason', 'budget', 'waiting', job.waiting, 'due_ms', due == '+inf' and '' or due,
      'seq', seq, 'settled', row.lease)
    redis.call('ZADD', P .. 'paused', due, job.job)
    redis.call('SADD', P .. 'paused:' .. row.tenant, job.job)
    emit_as(job.job, seq, 'job.waiting', job.waiting)
    tell_waiting(job.job, row, seq)
    return 'waiting'
  elseif outcome == 'delay' then
    local due = int(now + job.delay_ms)
    if limits_moved(row.tenant, job.revision) then due = NOW end
    redis.call('HSET', key, 'status', 'queued', 'queued_ms', NOW, 'wait_reason', 'rateLimit', 'due_ms', due, 'seq', seq,
      'settled', row.lease, 'handed_back', 1, 'told', '', 'wait_for', job.reason == 'release' and 'worker' or '')
    if start_by then
      -- Its client is told before; this is for one that is gone.
      local expires = int(tonumber(start_by) + 1000)
      redis.call('HSET', key, 'expires_ms', expires)
      redis.call('ZADD', P .. 'expiring', expires, job.job)
    end
    put_off(job.job, row.lane, row.tenant, due)
    emit_as(job.job, seq, 'job.queued', '{"reason":"' .. (job.reason or 'rateLimit') .. '"}')
    wake(row.lane)
    return 'queued'
  elseif outcome == 'retry' then
    local due = int(now + job.delay_ms)
    redis.call('HSET', key, 'status', 'waiting', 'wait_reason', 'backoff', 'error', job.error, 'due_ms', due, 'seq', seq,
      'settled', row.lease)
    redis.call('ZADD', P .. 'delayed:' .. row.lane, due, job.job)
    emit_as(job.job, seq, 'job.waiting', '{"kind":"backoff","delaySeconds":' ..
      string.format('%.3f', job.delay_ms / 1000) .. ',"error":' .. job.error .. '}')
    tell_waiting(job.job, row, seq)
    wake(row.lane)
    return 'waiting'
  end
end

local states = {}
-- Nothing is caught here: when Redis refuses (memory, disk), the first write fails and nothing was written.
for i, job in ipairs(a.jobs) do states[i] = settle(job) end
flush()
return {states, #WARNED > 0 and cjson.encode(WARNED) or '[]'}
