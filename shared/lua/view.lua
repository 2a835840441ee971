-- view: reads one job.
-- KEYS  1 job record   2 tombstone
-- ARGV  prefix, job, tenant, fields (names of record fields)
-- Returns {'ok', values, rank from 0 or -1, what it waits for}   {'gone'} removed after its retention   {'none'}
--@include base
local tenant = redis.call('HGET', KEYS[1], 'tenant')
if not tenant then
  if redis.call('GET', KEYS[2]) == a.tenant then return {'gone'} end
  return {'none'}
end
if tenant ~= a.tenant then return {'none'} end
local row = redis.call('HMGET', KEYS[1], 'status', 'lane')
local rank, waiting_on = -1, 'worker'
if row[1] == 'queued' then
  rank = redis.call('ZRANK', P .. 'q:' .. row[2] .. ':' .. tenant, a.job) or -1
  local limit = tonumber(redis.call('HGET', P .. 'tenant:' .. tenant, 'max_concurrent') or false)
  if limit and tonumber(redis.call('HGET', P .. 'running', tenant) or '0') >= limit then
    waiting_on = 'tenantConcurrency'
  elseif rank > 0 then
    waiting_on = 'priority'
  end
end
return {'ok', redis.call('HMGET', KEYS[1], unpack(a.fields)), int(rank), waiting_on}
