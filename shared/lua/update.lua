-- update: changes fields of a record, if it still exists.
-- KEYS  1 record
-- ARGV  prefix, fields (map), revision (of a document's content that the fields are about; absent: of none)
-- Returns 1 changed   0 there is no such record   2 it has a newer content
--@include base
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if a.revision and tonumber(redis.call('HGET', KEYS[1], 'revision') or '0') > a.revision then return 2 end
for field, value in pairs(a.fields) do
  redis.call('HSET', KEYS[1], field, value)
end
return 1
