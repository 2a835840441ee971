-- erase_tenant: the last step of a tenant's erasure: its record, its place in the index, and the index of its keys. What
-- was erased is kept in the journal of the job, so that one that begins anew here can say it.
-- KEYS  1 the tenant's record   2 index of its API keys   3 index of tenants   4 journal of the job
-- ARGV  prefix, tenant, audit (the entry of the log; its details are made here)
-- Returns JSON: name, requested_ms, erased_ms, and how much of each kind; the same again when it was done before
--         'none' there is no such tenant, or it is not being deleted
--@include base
--@include audit
local row = redis.call('HMGET', KEYS[1], 'deleting', 'name', 'erased_jobs', 'erased_documents', 'erased_blobs', 'erased_keys',
  'erased_ledger', 'erased_redis_keys', 'erased_tokens', 'erased_nano', 'erased_deliveries')
if not row[1] then return redis.call('HGET', KEYS[4], 'erased') or 'none' end
local keys = redis.call('UNLINK', KEYS[1], KEYS[2])
redis.call('ZREM', KEYS[3], a.tenant)
local told = {name = row[2], requested_ms = tonumber(row[1]), erased_ms = now}
for place, what in ipairs({'jobs', 'documents', 'blobs', 'keys', 'ledger', 'redis_keys', 'tokens', 'nano', 'deliveries'}) do
  told[what] = tonumber(row[place + 2] or '0')
end
told.redis_keys = told.redis_keys + keys
-- By hand: cjson writes large numbers in exponent form, and rounds them.
local parts = {}
for what, amount in pairs(told) do
  parts[#parts + 1] = '"' .. what .. '":' .. (type(amount) == 'number' and int(amount) or cjson.encode(amount))
end
local text = '{' .. table.concat(parts, ',') .. '}'
redis.call('HSET', KEYS[4], 'erased', text)
a.audit.details = '{"name":{"old":' .. cjson.encode(told.name) .. '},"jobs":{"old":' .. int(told.jobs) .. '},"documents":{"old":' ..
  int(told.documents) .. '},"blobs":{"old":' .. int(told.blobs) .. '},"keys":{"old":' .. int(told.keys) .. '}}'
audit(a.audit)
return text
