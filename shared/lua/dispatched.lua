-- dispatched: a call that was begun before it had a place at the model is sent now: from here on it is paid for.
-- KEYS  1 the job's calls under way
-- ARGV  prefix, call
-- Returns 1   0 it is not under way, or did not wait
--@include base
local seen = a.call .. ':o'
if redis.call('HGET', KEYS[1], seen) ~= '-1' then return 0 end
redis.call('HSET', KEYS[1], seen, '0')
return 1
