-- erase_jobs: ends jobs of a tenant that is being deleted; with `erase` those that have ended are removed with all that
-- hangs on them. Safe to repeat.
-- KEYS  1 the tenant's record   2 index of its jobs
-- ARGV  prefix, tenant, jobs (list of ids), erase (bool)
-- Returns {id of each job that a worker still holds …}   'none' the tenant is not being deleted
-- Events job.cancelled
--@include base
--@include queue
--@include limits
--@include hooks
--@include books
--@include outcomes
--@include job
--@include erasure
if redis.call('HEXISTS', KEYS[1], 'deleting') == 0 then return 'none' end
local running, ended, records = {}, {}, 0
for _, job_id in ipairs(a.jobs) do
  local key = P .. 'job:' .. job_id
  local row = load(key)
  if row.tenant == a.tenant then
    -- A record that cannot be read is nobody's work any more.
    row.hook = nil -- nobody is told any more
    local status = sound(row) and (row.owner or row.status ~= 'processing') and cancel(job_id, key, row)
    if status == 'cancelling' then
      running[#running + 1] = job_id
    else
      ended[#ended + 1], records = job_id, records + 1
    end
  elseif not row.tenant then
    ended[#ended + 1] = job_id
  end
end
flush()
if a.erase then
  local keys = 0
  for _, job_id in ipairs(ended) do
    keys = keys + redis.call('UNLINK', P .. 'job:' .. job_id, P .. 'log:' .. job_id, P .. 'journal:' .. job_id,
      P .. 'open:' .. job_id, P .. 'output:' .. job_id, P .. 'feedback:' .. job_id)
  end
  with_all('ZREM', KEYS[2], ended)
  for _, name in ipairs({'expiring', 'leases', 'retention', 'listened', 'paused', 'hooked'}) do with_all('ZREM', P .. name, ended) end
  for _, lane in ipairs(LANES) do with_all('ZREM', P .. 'delayed:' .. lane, ended) end
  with_all('SREM', P .. 'paused:' .. a.tenant, ended)
  erased(a.tenant, 'jobs', records)
  erased(a.tenant, 'redis_keys', keys)
end
return running
