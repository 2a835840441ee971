-- index_remove: takes a document out of search: its record, its place in the list, and all that versions of its
-- collection's index have of it. Safe to repeat.
-- KEYS  1 document   2 index of the tenant's documents   3 collection
-- ARGV  prefix, tenant, document, collection, blobs (list of its blobs: they are to be deleted)
-- Returns {chunks that the current version had, then of each version that had it: version, revision, chunks, engine}
--@include base
--@include vectors
local function of_versions()
  local found = {}
  for version in string.gmatch(table.concat(redis.call('HKEYS', KEYS[3]), ' '), 'v:(%d+)') do
    found[#found + 1] = version
  end
  return found
end
local chunks, removed = 0, {}
local current = redis.call('HGET', KEYS[3], 'current')
for _, version in ipairs(of_versions()) do
  local index = P .. 'index:' .. a.tenant .. ':' .. version .. ':' .. a.collection
  local before = redis.call('HGET', index, a.document)
  if before then
    local revision, count = string.match(before, '^(%d+) (%d+) ')
    redis.call('HDEL', index, a.document)
    redis.call('XADD', P .. 'changes:' .. a.tenant .. ':' .. version .. ':' .. a.collection, 'MAXLEN', '~', 10000, '*',
      'd', a.document)
    redis.call('HINCRBY', KEYS[3], 'chunks:' .. version, int(0 - tonumber(count)))
    redis.call('HINCRBY', KEYS[3], 'documents:' .. version, -1)
    local tail = a.tenant .. ':' .. a.document .. ':' .. version .. ':' .. revision
    redis.call('UNLINK', P .. 'pack:' .. tail, vectors_of(a.tenant, a.document, version, revision, a.collection))
    if version == current then chunks = tonumber(count) end
    for _, part in ipairs({version, revision, count, redis.call('HGET', KEYS[3], 'v:' .. version)}) do
      removed[#removed + 1] = part
    end
  end
end
with_all('SADD', P .. 'trash', a.blobs)
redis.call('UNLINK', KEYS[1])
redis.call('ZREM', KEYS[2], a.document)
return {int(chunks), unpack(removed)}
