-- cancel: a client asks for the end of a job. Idempotent.
-- KEYS  1 job record
-- ARGV  prefix, job, tenant
-- Returns {'ok', status after}   {'none'} no such job of this tenant
-- Events job.cancelled (a job that was not running)
--@include base
--@include queue
--@include job
local key = KEYS[1]
local row = load(key)
if row.tenant ~= a.tenant then return {'none'} end
load_more(key, row)
local status = row.status
if status == 'queued' or status == 'scheduled' or status == 'waiting' then
  queue_remove(a.job, row.lane, row.tenant, row.est)
  unschedule(a.job, row.lane, row.tenant, status)
  finish(a.job, key, row, 'cancelled', '{}', 'cancel_ms', NOW, 'cancel_tokens', tokens_of(row), 'cancelled_ms', NOW,
    'error', '', 'due_ms', '', 'wait_reason', '')
  flush()
  return {'ok', 'cancelled'}
end
if status == 'processing' then
  status = 'cancelling'
  redis.call('HSET', key, 'status', status, 'cancel_ms', NOW, 'cancel_tokens', tokens_of(row))
end
-- Said again with each call: the worker may have missed it.
if status == 'cancelling' then redis.call('PUBLISH', P .. 'ctl:' .. row.owner, 'cancel ' .. a.job .. ' ' .. row.lease) end
return {'ok', status}
