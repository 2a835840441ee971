-- reap: takes back the jobs of workers that were lost, and expires jobs that were not started in time.
-- KEYS  1 leases   2 jobs that may expire
-- ARGV  prefix, max_lost (a job whose worker was lost so often is poison), limit (jobs per call)
-- Returns {{job id, new status} …}
-- Events job.queued | job.cancelled | job.failed | job.expired
--@include base
--@include queue
--@include job
local done = {}
for _, job_id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, a.limit)) do
  local key = P .. 'job:' .. job_id
  local row = redis.call('HMGET', key, 'status', 'tenant', 'lane', 'score')
  if row[1] == 'processing' or row[1] == 'cancelling' then
    release(job_id, key)
    local lost = redis.call('HINCRBY', key, 'lost', 1)
    if row[1] == 'cancelling' then
      finish(job_id, key, 'cancelled', '{}')
    elseif lost >= a.max_lost then
      local message = 'The worker was lost ' .. int(lost) .. ' times while it ran this job.'
      local err = '{"code":"worker_lost","message":"' .. message .. '","retryable":false}'
      redis.call('HSET', key, 'error', err)
      finish(job_id, key, 'failed', '{"error":' .. err .. '}')
    else
      redis.call('HSET', key, 'status', 'queued', 'queued_ms', int(now))
      emit(job_id, 'job.queued', '{"reason":"workerLost"}')
      queue_push(job_id, row[3], row[2], tonumber(row[4]))
    end
    done[#done + 1] = {job_id, redis.call('HGET', key, 'status')}
  else
    redis.call('ZREM', KEYS[1], job_id)
  end
end
for _, job_id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, a.limit)) do
  local key = P .. 'job:' .. job_id
  local row = redis.call('HMGET', key, 'status', 'tenant', 'lane')
  if row[1] == 'queued' or row[1] == 'scheduled' then
    queue_remove(job_id, row[3], row[2])
    redis.call('ZREM', P .. 'delayed:' .. row[3], job_id)
    if row[1] == 'scheduled' and redis.call('HINCRBY', P .. 'scheduled', row[2], -1) <= 0 then
      redis.call('HDEL', P .. 'scheduled', row[2])
    end
    finish(job_id, key, 'expired', '{}')
    done[#done + 1] = {job_id, 'expired'}
  else
    redis.call('ZREM', KEYS[2], job_id)
  end
end
return done
