-- view: reads one job.
-- KEYS  1 job record   2 tombstone
-- ARGV  prefix, job, tenant, fields (names of record fields)
-- Returns {'ok', values, now ms, and for a queued job: rank from 0, tokens ahead, what it waits for, time to its start
--         in ms (middle, 90th percentile; -1 unknown)}   {'gone'} removed after its retention   {'none'}
--@include base
--@include pace
local row = redis.call('HMGET', KEYS[1], 'tenant', 'status', 'lane', 'est')
if not row[1] then
  if redis.call('GET', KEYS[2]) == a.tenant then return {'gone'} end
  return {'none'}
end
if row[1] ~= a.tenant then return {'none'} end
local values = redis.call('HMGET', KEYS[1], unpack(a.fields))
local rank = row[2] == 'queued' and redis.call('ZRANK', P .. 'q:' .. row[3] .. ':' .. row[1], a.job)
if not rank then return {'ok', values, NOW} end
local ahead, waiting, middle, high = outlook(row[3], row[1], rank, tonumber(row[4] or '0'))
return {'ok', values, NOW, rank, int(ahead), waiting, int(middle), int(high)}
