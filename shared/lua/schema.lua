-- schema: what of a stored form stands in this Redis, and whether a process can read it.
-- KEYS  1 schema
-- ARGV  prefix, reads (the newest form that the process can read), writes (the oldest form that reads all it writes)
-- Returns the form that stands here: that of the newest writer so far. It is raised by no process that cannot read it.
--@include base
local stored = tonumber(redis.call('GET', KEYS[1]) or '0')
if stored < a.writes and stored <= a.reads then
  redis.call('SET', KEYS[1], int(a.writes))
  return int(a.writes)
end
return int(stored)
