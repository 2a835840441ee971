-- sweep: removes jobs whose retention is over; a tombstone answers 410 for 30 days.
-- KEYS  1 final jobs by the time of removal
-- ARGV  prefix, limit (jobs per call), gone_s (life of a tombstone, s)
-- Returns {job id …}
--@include base
local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, a.limit)
for _, job_id in ipairs(ids) do
  local key = P .. 'job:' .. job_id
  local tenant = redis.call('HGET', key, 'tenant')
  if tenant then
    redis.call('SET', P .. 'gone:' .. job_id, tenant, 'EX', a.gone_s)
    redis.call('ZREM', P .. 'jobs:' .. tenant, job_id)
  end
  redis.call('DEL', key, P .. 'log:' .. job_id, P .. 'journal:' .. job_id, P .. 'open:' .. job_id)
  redis.call('ZREM', KEYS[1], job_id)
end
return ids
