-- update: changes fields of a record, if it still exists.
-- KEYS  1 record
-- ARGV  prefix, fields (map)
-- Returns 1 changed   0 there is no such record
--@include base
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
for field, value in pairs(a.fields) do
  redis.call('HSET', KEYS[1], field, value)
end
return 1
