-- index_forget: a version that was dropped is none of a collection's any more.
-- KEYS  1 collection
-- ARGV  prefix, version
-- Returns 1
--@include base
for _, state in ipairs({'previous', 'building'}) do
  if redis.call('HGET', KEYS[1], state) == int(a.version) then
    redis.call('HDEL', KEYS[1], state)
    if state == 'building' then redis.call('HDEL', KEYS[1], 'builder') end
  end
end
redis.call('HDEL', KEYS[1], 'v:' .. int(a.version), 'chunks:' .. int(a.version), 'documents:' .. int(a.version))
return 1
