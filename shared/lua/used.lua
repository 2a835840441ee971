-- used: notes that an API key was used just now, if it still exists.
-- KEYS  1 key
-- ARGV  prefix
-- Returns 1 noted   0 the key is gone
--@include base
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'used_ms', NOW)
return 1
