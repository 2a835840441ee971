-- index_patch: changes what search shows of a document, in its record and in all versions of its collection's index.
-- KEYS  1 document   2 collection
-- ARGV  prefix, tenant, document, collection, fields (map of title and metadata, which is JSON)
-- Returns 1   0 there is no such document
--@include base
if redis.call('HGET', KEYS[1], 'tenant') ~= a.tenant then return 0 end
for field, value in pairs(a.fields) do redis.call('HSET', KEYS[1], field, value) end
for version in string.gmatch(table.concat(redis.call('HKEYS', KEYS[2]), ' '), 'v:(%d+)') do
  local tail = a.tenant .. ':' .. version .. ':' .. a.collection
  local before = redis.call('HGET', P .. 'index:' .. tail, a.document)
  if before then
    local revision, count, json = string.match(before, '^(%d+) (%d+) (.*)$')
    local entry = cjson.decode(json)
    if a.fields.title then entry.title = a.fields.title end
    if a.fields.metadata then entry.metadata = cjson.decode(a.fields.metadata) end
    redis.call('HSET', P .. 'index:' .. tail, a.document, revision .. ' ' .. count .. ' ' .. cjson.encode(entry))
    redis.call('XADD', P .. 'changes:' .. tail, 'MAXLEN', '~', 10000, '*', 'd', a.document)
  end
end
return 1
