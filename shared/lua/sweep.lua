-- sweep: removes jobs whose retention is over; a tombstone answers 410 for 30 days.
-- KEYS  1 final jobs by the time of removal
-- ARGV  prefix, limit (jobs per call), gone_s (life of a tombstone, s), output_types (job types that write an output)
-- Returns {job id …}
--@include base
local writes = {}
for _, kind in ipairs(a.output_types) do writes[kind] = true end
local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, a.limit)
for _, job_id in ipairs(ids) do
  local key = P .. 'job:' .. job_id
  local row = redis.call('HMGET', key, 'tenant', 'blobs', 'type')
  local tenant, output = row[1], P .. 'output:' .. job_id
  if tenant then
    local trash = {}
    for prefix in string.gmatch(row[2] or '', '%S+') do trash[#trash + 1] = prefix end
    -- A part that was written but not kept (its worker lost the lease) lies there as well.
    if #trash > 0 or writes[row[3]] or redis.call('EXISTS', output) == 1 then
      trash[#trash + 1] = 'outputs/' .. tenant .. '/' .. job_id
      with_all('SADD', P .. 'trash', trash)
    end
    redis.call('SET', P .. 'gone:' .. job_id, tenant, 'EX', a.gone_s)
    redis.call('ZREM', P .. 'jobs:' .. tenant, job_id)
  end
  redis.call('DEL', key, P .. 'log:' .. job_id, P .. 'journal:' .. job_id, P .. 'open:' .. job_id, P .. 'feedback:' .. job_id,
    output)
  redis.call('ZREM', KEYS[1], job_id)
end
return ids
