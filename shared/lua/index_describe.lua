-- index_describe: notes what was learned of a version of a collection's index, if there is such a version (any more).
-- KEYS  1 collection
-- ARGV  prefix, version, spec (JSON)
-- Returns 1   0 there is no such version
--@include base
local field = 'v:' .. int(a.version)
if redis.call('HEXISTS', KEYS[1], field) == 0 then return 0 end
redis.call('HSET', KEYS[1], field, a.spec)
return 1
