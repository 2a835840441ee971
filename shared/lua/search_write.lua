-- search_write: writes one search into the log, once, and takes a few out of it whose retention is over. What refers to
-- documents that are gone is not written: then the caller takes it out and comes again.
-- KEYS  1 record of the search (any name when nothing is to be written)   2 the tenant's record
-- ARGV  prefix, tenant, kind (what ids of searches begin with), retention_ms, trim (most that are taken out), and without
--       which nothing is written: search (its id), at_ms (the time in it), documents (list of ids), fields (map), mark (of
--       its user, optional)
-- Returns {'ok'} it is there   {'gone', document ids …}   {'over'} its retention is, or the tenant is being deleted
--@include base
--@include searches
local bound = id_at(math.max(0, now - a.retention_ms))
for _, id in ipairs(older(SEARCHES, bound, a.trim)) do forget(id) end
local tenant = redis.call('HMGET', KEYS[2], 'id', 'deleting')
if not a.search or not tenant[1] or tenant[2] or a.at_ms + a.retention_ms <= now then return {'over'} end
-- One that failed or was cancelled may have had a further attempt, which comes to another end.
local there = redis.call('HMGET', KEYS[1], 'tenant', 'failed')
if there[1] and not there[2] then return {'ok'} end
redis.call('HDEL', KEYS[1], 'failed')
local gone = {'gone'}
for _, document in ipairs(a.documents) do
  if redis.call('HGET', P .. 'doc:' .. document, 'tenant') ~= a.tenant then gone[#gone + 1] = document end
end
if #gone > 1 then return gone end
local flat = {'tenant', a.tenant, 'rev', '0', 'docs', table.concat(a.documents, ' ')}
for field, value in pairs(a.fields) do
  flat[#flat + 1] = field
  flat[#flat + 1] = value
end
if a.mark then
  flat[#flat + 1] = 'mark'
  flat[#flat + 1] = a.mark
end
redis.call('HSET', KEYS[1], unpack(flat))
redis.call('PEXPIREAT', KEYS[1], int(a.at_ms + a.retention_ms))
enter(SEARCHES, a.search, a.retention_ms)
local indexes = {}
if a.mark then indexes[1] = P .. 'searchuser:' .. a.tenant .. ':' .. a.mark end
for _, document in ipairs(a.documents) do indexes[#indexes + 1] = P .. 'searchdoc:' .. a.tenant .. ':' .. document end
for _, index in ipairs(indexes) do
  with_all('ZREM', index, older(index, bound, a.trim))
  enter(index, a.search, a.retention_ms)
end
return {'ok'}
