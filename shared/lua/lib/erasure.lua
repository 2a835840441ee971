-- erasure: a tenant that is being deleted. Its record says so until all else is gone: `deleting` (since when, ms),
-- `erasure` and `erasure_tenant` (the job that does it, and whose that is), `erased_…` (how much is gone). Needs base.

-- Why no job may be taken in that is to erase this tenant: {'no_target'} there is none, {'erasing', job id, its tenant}
-- another is at it; nil when it may.
local function erasure_refused(tenant)
  local row = redis.call('HMGET', P .. 'tenant:' .. tenant, 'id', 'erasure', 'erasure_tenant')
  if not row[1] then return {'no_target'} end
  local status = row[2] and redis.call('HGET', P .. 'job:' .. row[2], 'status')
  if not status or status == 'failed' or status == 'cancelled' or status == 'expired' then return nil end
  return {'erasing', row[2], row[3]}
end

-- Notes how much of something is gone.
local function erased(tenant, what, count)
  if count > 0 then redis.call('HINCRBY', P .. 'tenant:' .. tenant, 'erased_' .. what, int(count)) end
end

-- From now on this job of `owner` deletes the tenant: its keys end in every process, and nothing of it is admitted or
-- started any more (admit, retry, create and claim look at `deleting`). The index of its keys stays to the end: it tells
-- which counters were theirs.
local function begin_erasure(tenant, job_id, owner)
  local record, keys = P .. 'tenant:' .. tenant, 0
  redis.call('HSETNX', record, 'deleting', NOW)
  redis.call('HSET', record, 'erasure', job_id, 'erasure_tenant', owner)
  for _, id in ipairs(redis.call('ZRANGE', P .. 'keys:' .. tenant, 0, -1)) do
    keys = keys + redis.call('DEL', P .. 'key:' .. id)
    redis.call('PUBLISH', P .. 'revoked', id)
  end
  erased(tenant, 'keys', keys)
  erased(tenant, 'redis_keys', keys)
end
