-- index_put: a document's chunks, which were written before, become part of a version of its collection's index, in one
-- step with its record. Safe to repeat.
-- KEYS  1 job record   2 document   3 collection   4 index   5 changes of the index   6 pack   7 vectors
-- ARGV  prefix, worker, lease, tenant, document, version, revision, entry (JSON), chunks,
--       fields (map: of the document's record; absent where only another version of the index is made),
--       collection, pack_prefix (name of the document's packs in this version, without the revision),
--       follows (bool: the version must be the current one), vectors (bool: the document has vectors under KEYS 7)
-- Returns {'ok', revision that was there before or '', blobs that nobody needs any more …}   {'lost'} the lease is lost   {'gone'} the document was deleted   {'newer'} a newer content of it is there
--         {'switched', current version} the collection has another version by now   {'no_version'} it was dropped
--         {'unwritten'} pack or vectors are not there (any more)
--@include base
--@include vectors
local row = redis.call('HMGET', KEYS[1], 'owner', 'lease', 'status')
if row[1] ~= a.worker or row[2] ~= tostring(a.lease) or (row[3] ~= 'processing' and row[3] ~= 'cancelling') then
  return {'lost'}
end
local doc = redis.call('HMGET', KEYS[2], 'tenant', 'revision', 'next')
if doc[1] ~= a.tenant then return {'gone'} end
if a.fields and tonumber(doc[2] or '0') > a.revision then return {'newer'} end
if not a.fields and tonumber(doc[2] or '0') ~= a.revision then return {'newer'} end
local current = redis.call('HGET', KEYS[3], 'current')
if a.follows and current ~= int(a.version) then return {'switched', current or '0'} end
if redis.call('HEXISTS', KEYS[3], 'v:' .. int(a.version)) == 0 then return {'no_version'} end
if redis.call('EXISTS', KEYS[6]) == 0 or (a.vectors and redis.call('EXISTS', KEYS[7]) == 0) then return {'unwritten'} end
local before = redis.call('HGET', KEYS[4], a.document)
local had, had_chunks = nil, 0
if before then
  had, had_chunks = string.match(before, '^(%d+) (%d+) ')
end
redis.call('HSET', KEYS[2], 'indexed', 1)
redis.call('PERSIST', KEYS[6])
redis.call('PERSIST', KEYS[7])
-- Title and metadata may have been changed while it was made ready.
local entry = cjson.decode(a.entry)
local shown = redis.call('HMGET', KEYS[2], 'title', 'metadata')
if shown[1] and shown[1] ~= '' and not (a.fields and a.fields.title) then entry.title = shown[1] end
if shown[2] and shown[2] ~= '' and not (a.fields and a.fields.metadata) then entry.metadata = cjson.decode(shown[2]) end
redis.call('HSET', KEYS[4], a.document, int(a.revision) .. ' ' .. int(a.chunks) .. ' ' .. cjson.encode(entry))
redis.call('XADD', KEYS[5], 'MAXLEN', '~', 10000, '*', 'd', a.document)
redis.call('HINCRBY', KEYS[3], 'chunks:' .. int(a.version), int(a.chunks - tonumber(had_chunks)))
if not before then redis.call('HINCRBY', KEYS[3], 'documents:' .. int(a.version), 1) end
if had and tonumber(had) ~= a.revision then redis.call('UNLINK', a.pack_prefix .. had, vectors_of(a.tenant, a.document, a.version, had, a.collection)) end
local reply = {'ok', had or ''}
if a.fields then
  for _, name in ipairs({'file_blob', 'text_blob'}) do
    local old = redis.call('HGET', KEYS[2], name)
    if old and a.fields[name] and a.fields[name] ~= old then
      redis.call('SADD', P .. 'trash', old)
      reply[#reply + 1] = old
    end
  end
  for field, value in pairs(a.fields) do redis.call('HSET', KEYS[2], field, value) end
end
return reply
