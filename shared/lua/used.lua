-- used: notes that an API key was used just now, if it still exists; and of its newest secret that it has been used.
-- KEYS  1 key
-- ARGV  prefix, hash (of the secret, when it is the newest and was not used before; else absent)
-- Returns 1 noted   0 the key is gone
--@include base
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'used_ms', NOW)
if a.hash and redis.call('HGET', KEYS[1], 'hash') == a.hash then redis.call('HDEL', KEYS[1], 'unused') end
return 1
