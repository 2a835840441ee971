-- append: a worker adds events to the log of a job that it holds.
-- KEYS  1 job record   2 job log
-- ARGV  prefix, job, worker, lease, batch (number of this call within the lease),
--       events (list of {type, JSON object}), progress (JSON, optional)
-- Returns number of the last event, or -1 when the lease is lost (nothing was written)
-- Events those given
--@include base
--@include queue
--@include job
if not holds_lease(KEYS[1], a.worker, a.lease) then return -1 end
-- A batch that is sent again, because its answer was lost with the connection, is written once.
local mark = int(a.lease) .. ':' .. int(a.batch)
if redis.call('HGET', KEYS[1], 'batch') == mark then return tonumber(redis.call('HGET', KEYS[1], 'seq')) end
redis.call('HSET', KEYS[1], 'batch', mark)
local seq = -1
for _, event in ipairs(a.events) do
  seq = emit(a.job, event[1], event[2])
  if event[1] == 'delta' then redis.call('HSET', KEYS[1], 'text_seq', seq) end
end
if a.progress then redis.call('HSET', KEYS[1], 'progress', a.progress) end
return seq
