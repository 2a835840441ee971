-- next_revision: a number for a document's next content; gaps do no harm.
-- KEYS  1 document
-- ARGV  prefix, tenant
-- Returns the number   0 the tenant has no such document (any more)
--@include base
if redis.call('HGET', KEYS[1], 'tenant') ~= a.tenant then return 0 end
return redis.call('HINCRBY', KEYS[1], 'next', 1)
