-- cancel: a client asks for the end of a job. Idempotent.
-- KEYS  1 job record
-- ARGV  prefix, job, tenant, unless_started (bool: leave one alone that runs)
-- Returns {'ok', status after}   {'none'} no such job of this tenant
-- Events job.cancelled (a job that was not running)
--@include base
--@include queue
--@include limits
--@include books
--@include job
local key = KEYS[1]
local row = load(key)
if row.tenant ~= a.tenant then return {'none'} end
if a.unless_started and row.status == 'processing' then return {'ok', row.status} end
local status = cancel(a.job, key, row)
flush()
return {'ok', status}
