-- reap: the queue's upkeep, for any process to call. Takes back the jobs of workers that were lost, cancels chats that
-- nobody listens to, expires jobs that were not started in time, makes delayed
-- jobs ready that are due, looks again at those that wait for a budget, and returns parked tenants that have room.
-- KEYS  1 leases   2 jobs that may expire   3 jobs that somebody must listen to
-- ARGV  prefix, max_lost (a job whose worker was lost so often is poison), limit (jobs per call), lease_ms (0: take back
--       at once). When nobody could call this for half of that, Redis was away, whatever the reason (restart, freeze,
--       failover): then nothing is taken back from workers for one lease, so that owners who sat it out renew first
-- Returns {{{job id, new status, reason: lease | expiry | listener} …}, soft limits that were crossed first here: JSON list}
-- Events job.queued | job.cancelled | job.failed | job.expired | job.warning
--@include base
--@include queue
--@include limits
--@include hooks
--@include books
--@include outcomes
--@include job
local done = {}

local function take_back(job_id)
  local key = P .. 'job:' .. job_id
  local row = load(key)
  if row.status ~= 'processing' and row.status ~= 'cancelling' then
    redis.call('ZREM', KEYS[1], job_id)
    return
  elseif not sound(row) then
    -- Nobody can go on with it; it must not stand in the way either.
    redis.call('ZADD', KEYS[1], int(now + 3600000), job_id)
    return
  end
  release(job_id, key, row)
  local lost = redis.call('HINCRBY', key, 'lost', 1)
  if row.status == 'cancelling' then
    finish(job_id, key, row, 'cancelled', '{}', 'cancelled_ms', NOW)
    done[#done + 1] = {job_id, 'cancelled', 'lease'}
  elseif lost >= a.max_lost then
    fail_lost(job_id, key, row, 'The worker was lost ' .. int(lost) .. ' times while it ran this job.')
    done[#done + 1] = {job_id, 'failed', 'lease'}
  elseif not may_restart(key) then
    fail_lost(job_id, key, row, 'The worker was lost in the middle of the answer.')
    done[#done + 1] = {job_id, 'failed', 'lease'}
  else
    redis.call('HSET', key, 'status', 'queued', 'queued_ms', NOW, 'told', '')
    emit(job_id, 'job.queued', '{"reason":"workerLost"}')
    load_more(key, row)
    queue_push(job_id, row.lane, row.tenant, tonumber(row.score), tonumber(row.est or '0'))
    done[#done + 1] = {job_id, 'queued', 'lease'}
  end
end

local function expire(job_id)
  local key = P .. 'job:' .. job_id
  local row = load(key)
  if (row.status ~= 'queued' and row.status ~= 'scheduled') or not sound(row) then
    redis.call('ZREM', KEYS[2], job_id)
    return
  end
  queue_remove(job_id, row.lane, row.tenant, row.est)
  load_more(key, row)
  unschedule(job_id, row.lane, row.tenant, row.wait_reason == 'rateLimit' and 'scheduled' or row.status)
  finish(job_id, key, row, 'expired', '{}')
  done[#done + 1] = {job_id, 'expired', 'expiry'}
end

-- A job that waits for a budget goes on, and will see whether there is one.
local function resume(job_id)
  local key = P .. 'job:' .. job_id
  local row = load(key)
  if not row.tenant then
    redis.call('ZREM', P .. 'paused', job_id)
    return
  end
  unpause(job_id, row.tenant)
  load_more(key, row)
  if row.status ~= 'waiting' or row.wait_reason ~= 'budget' or not sound(row) then return end
  redis.call('HSET', key, 'status', 'queued', 'queued_ms', NOW, 'wait_reason', '', 'waiting', '', 'due_ms', '',
    'handed_back', 1, 'told', '')
  emit(job_id, 'job.queued', '{"reason":"budget"}')
  queue_push(job_id, row.lane, row.tenant, tonumber(row.score), tonumber(row.est or '0'))
end

-- Ends what lives only while somebody listens, and nobody does. The entry goes when its time has passed, whatever
-- became of the job: while somebody listens that time never passes.
local function abandon(job_id)
  local key = P .. 'job:' .. job_id
  local row = load(key)
  redis.call('ZREM', KEYS[3], job_id)
  if not sound(row) or not (row.status == 'queued' or row.status == 'waiting' or row.status == 'processing') then return end
  emit(job_id, 'job.warning', '{"code":"nobody_listens","message":"Nobody listens to this answer any more: it is cancelled."}')
  row.seq = tonumber(row.seq) + 1
  done[#done + 1] = {job_id, cancel(job_id, key, row), 'listener'}
end

local quiet, unheard = false, false
if a.lease_ms > 0 then
  local row = redis.call('HMGET', P .. 'upkeep', 'last', 'quiet_until', 'listened_from')
  local away, quiet_until, listened_from = now - tonumber(row[1] or '0'), tonumber(row[2] or '0'), tonumber(row[3] or '0')
  if away > a.lease_ms / 2 then quiet_until = now + a.lease_ms end
  -- Somebody runs this at least every 2.4 s, and listeners renew every two seconds: they too have sat it out.
  if row[1] and away > 3400 then listened_from = now + 5000 end
  redis.call('HSET', P .. 'upkeep', 'last', NOW, 'quiet_until', int(quiet_until), 'listened_from', int(listened_from))
  quiet, unheard = now < quiet_until, now < listened_from
end
if not quiet then
  for _, job_id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', NOW, 'LIMIT', 0, a.limit)) do take_back(job_id) end
end
if not unheard then
  for _, job_id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', NOW, 'LIMIT', 0, a.limit)) do abandon(job_id) end
end
for _, job_id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', NOW, 'LIMIT', 0, a.limit)) do expire(job_id) end
for _, job_id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'paused', '-inf', NOW, 'LIMIT', 0, a.limit)) do resume(job_id) end
flush()
for _, lane in ipairs(LANES) do
  promote(lane, a.limit)
  count_slots(lane)
  for _, tenant in ipairs(redis.call('SRANDMEMBER', P .. 'q:' .. lane .. ':parked', 20)) do
    local row = redis.call('HMGET', P .. 'tenant:' .. tenant, 'max_concurrent', 'deleting')
    local most = row[2] and 0 or tonumber(row[1] or math.huge)
    if tonumber(redis.call('HGET', P .. 'running', tenant) or '0') < most then unpark(tenant) end
  end
  -- The net under a worker that was woken and died before it claimed.
  if redis.call('EXISTS', P .. 'q:' .. lane .. ':tenants') == 1 then wake(lane) end
end
return {done, #WARNED > 0 and cjson.encode(WARNED) or '[]'}
