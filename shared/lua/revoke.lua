-- revoke: ends an API key at once, in every process.
-- KEYS  1 key   2 the tenant's index of keys   3 the tenant's record
-- ARGV  prefix, id, tenant, audit (its entry)
-- Returns 'ok'   'none' no such key of this tenant   'admin' it is the admin key
--@include base
--@include audit
--@include keys
if redis.call('HGET', KEYS[1], 'tenant') ~= a.tenant then return 'none' end
if is_admin_key(KEYS[3], a.id) then return 'admin' end
keep_limits(KEYS[1], a.tenant, a.id)
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], a.id)
audit(a.audit)
tell_key(KEYS[1], a.id)
return 'ok'
