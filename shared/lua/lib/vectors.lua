-- vectors: where a document's vectors are in a version of its collection's index. Needs base.

-- The key of these vectors, which are to go: they are none of those that there are any more.
local function vectors_of(tenant, document, version, revision, collection)
  redis.call('HDEL', P .. 'vectorsof:' .. tenant .. ':' .. int(version) .. ':' .. collection, document .. ':' .. revision)
  return P .. 'vectors:' .. tenant .. ':' .. document .. ':' .. int(version) .. ':' .. revision .. ':' .. collection
end
