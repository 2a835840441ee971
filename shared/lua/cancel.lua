-- cancel: a client asks for the end of a job. Idempotent.
-- KEYS  1 job record
-- ARGV  prefix, job, tenant, unless_started (bool: leave one alone that runs; one that did not begin gets its request
--       back)
-- Returns {'ok', status after, with unless_started: why its token rate has no room, JSON, or ''}
--         {'none'} no such job of this tenant
-- Events job.cancelled (a job that was not running)
--@include base
--@include queue
--@include limits
--@include hooks
--@include books
--@include outcomes
--@include job
local key = KEYS[1]
local row = load(key)
if row.tenant ~= a.tenant then return {'none'} end
local why = ''
if a.unless_started then
  if row.status == 'processing' then return {'ok', row.status, ''} end
  read(key, row, BOOKED)
  local scopes = scopes_of(tenant_policy(row.tenant), row.tenant, row.key, row.user, row.prompt)
  local slow = rate_check(scopes, 't', math.max(1, tonumber(row.est or '0')))
  if slow then why = cjson.encode(slow) end
  if row.status == 'queued' and tokens_of(load_more(key, row)) == 0 then refund_request(scopes) end
end
local status = cancel(a.job, key, row)
flush()
return {'ok', status, why}
