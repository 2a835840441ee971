-- foresee: what a job of a tenant might expect if it were admitted now. Writes nothing.
-- KEYS  1 tenant record
-- ARGV  prefix, tenant, lane, class_ms (class * agingSeconds, ms)
-- Returns {jobs waiting, most that may, running, most that may or -1, rank from 0, tokens ahead, what it would wait for,
--          time to its start in ms (middle, 90th percentile; -1 unknown)}
--@include base
--@include queue
--@include pace
local limits = redis.call('HMGET', KEYS[1], 'max_queued', 'max_concurrent')
local waiting, bound = queue_room(a.tenant, limits[1])
local rank = redis.call('ZCOUNT', P .. 'q:' .. a.lane .. ':' .. a.tenant, '-inf', now + a.class_ms)
local ahead, waits, middle, high = outlook(a.lane, a.tenant, rank, 0)
return {int(waiting), int(bound), redis.call('HGET', P .. 'running', a.tenant) or '0', limits[2] or '-1', int(rank),
  int(ahead), waits, int(middle), int(high)}
