-- cancel: a client asks for the end of a job. Idempotent.
-- KEYS  1 job record
-- ARGV  prefix, job, tenant
-- Returns {'ok', status after}   {'none'} no such job of this tenant
-- Events job.cancelled (a job that was not running)
--@include base
--@include queue
--@include job
local key = KEYS[1]
local row = redis.call('HMGET', key, 'tenant', 'status', 'lane', 'owner', 'lease')
if row[1] ~= a.tenant then return {'none'} end
local status = row[2]
if status == 'queued' or status == 'scheduled' or status == 'waiting' then
  queue_remove(a.job, row[3], row[1])
  redis.call('ZREM', P .. 'delayed:' .. row[3], a.job)
  if status == 'scheduled' and redis.call('HINCRBY', P .. 'scheduled', row[1], -1) <= 0 then
    redis.call('HDEL', P .. 'scheduled', row[1])
  end
  redis.call('HSET', key, 'cancel_ms', int(now), 'cancel_tokens', int(job_tokens(key)))
  finish(a.job, key, 'cancelled', '{}')
elseif status == 'processing' then
  redis.call('HSET', key, 'status', 'cancelling', 'cancel_ms', int(now), 'cancel_tokens', int(job_tokens(key)))
  redis.call('PUBLISH', P .. 'ctl:' .. row[4], 'cancel ' .. a.job .. ' ' .. row[5])
elseif status == 'cancelling' then
  redis.call('PUBLISH', P .. 'ctl:' .. row[4], 'cancel ' .. a.job .. ' ' .. row[5])
end
return {'ok', redis.call('HGET', key, 'status')}
