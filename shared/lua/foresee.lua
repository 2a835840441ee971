-- foresee: what a job of a tenant might expect if it were admitted now. Writes nothing.
-- KEYS  none
-- ARGV  prefix, tenant, lane, class_ms (class * agingSeconds, ms)
-- Returns {rank from 0, tokens ahead, what it would wait for, time to its start in ms (middle, 90th percentile; -1
--          unknown)}
--@include base
--@include queue
--@include pace
local rank = redis.call('ZCOUNT', P .. 'q:' .. a.lane .. ':' .. a.tenant, '-inf', now + a.class_ms)
local ahead, waits, middle, high = outlook(a.lane, a.tenant, rank, 0)
return {int(rank), int(ahead), waits, int(middle), int(high)}
