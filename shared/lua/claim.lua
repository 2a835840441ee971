-- claim: gives a worker up to `count` jobs of its lane.
-- KEYS  1 delayed jobs of the lane   2 leases
-- ARGV  prefix, lane, worker, count, lease_ms (length of the lease), fields (names of record fields to return)
-- Returns {now ms, next due ms or -1, {values of `fields`} per job}
-- Events job.queued (a delayed job has become due), job.expired, job.started, attempt.restarted
--@include base
--@include queue
--@include job
local function unschedule(job_id, key, tenant, status)
  redis.call('ZREM', KEYS[1], job_id)
  redis.call('HDEL', key, 'due_ms', 'wait_reason')
  if status == 'scheduled' and redis.call('HINCRBY', P .. 'scheduled', tenant, -1) <= 0 then
    redis.call('HDEL', P .. 'scheduled', tenant)
  end
end

for _, job_id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 200)) do
  local key = P .. 'job:' .. job_id
  local row = redis.call('HMGET', key, 'status', 'tenant', 'score', 'due_ms')
  if row[1] == 'scheduled' or row[1] == 'waiting' then
    unschedule(job_id, key, row[2], row[1])
    redis.call('HSET', key, 'status', 'queued', 'queued_ms', int(now))
    emit(job_id, 'job.queued', '{}')
    queue_push(job_id, a.lane, row[2], tonumber(row[3]))
  else
    redis.call('ZREM', KEYS[1], job_id)
  end
end

local jobs, limits = {}, {}
while #jobs < a.count do
  local tenant, weight = next_tenant(a.lane, limits)
  if not tenant then break end
  local job_id = queue_pop(a.lane, tenant)
  local key = P .. 'job:' .. job_id
  local row = redis.call('HMGET', key, 'status', 'attempt', 'lease', 'est', 'handed_back', 'expires_ms', 'text_seq',
    'first_seq', 'started_ms')
  if row[1] == 'queued' then
    if not row[9] and tonumber(row[6]) <= now then
      finish(job_id, key, 'expired', '{}')
    else
      -- A deploy's hand-back is not an attempt of its own: the same attempt goes on.
      local attempt = tonumber(row[2])
      if not row[5] then attempt = attempt + 1 end
      local lease = tonumber(row[3]) + 1
      local estimate = tonumber(row[4] or '0')
      redis.call('HSET', key, 'status', 'processing', 'owner', a.worker, 'lease', lease, 'attempt', attempt,
        'claimed_ms', int(now), 'charged', int(estimate), 'weight', weight, 'tok_at_claim', int(job_tokens(key)))
      redis.call('HSETNX', key, 'started_ms', int(now))
      redis.call('HDEL', key, 'handed_back', 'expires_ms', 'error')
      redis.call('ZREM', P .. 'expiring', job_id)
      redis.call('ZADD', KEYS[2], now + a.lease_ms, job_id)
      redis.call('HINCRBY', P .. 'running', tenant, 1)
      charge(a.lane, tenant, math.floor(estimate * 1000 / weight))
      local seq = emit(job_id, 'job.started', '{"attempt":' .. attempt .. ',"worker":"' .. a.worker .. '"}')
      if not row[8] then
        redis.call('HSET', key, 'first_seq', seq)
      elseif row[7] then
        emit(job_id, 'attempt.restarted', '{"discardAfter":' .. row[8] .. '}')
        redis.call('HDEL', key, 'text_seq')
      end
      jobs[#jobs + 1] = redis.call('HMGET', key, unpack(a.fields))
    end
  end
end
local due = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return {int(now), due[2] or '-1', jobs}
