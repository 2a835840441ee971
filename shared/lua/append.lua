-- append: a worker adds events to the log of a job that it holds.
-- KEYS  1 job record   2 job log
-- ARGV  prefix, job, worker, lease, events (list of {type, JSON object}), progress (JSON, optional)
-- Returns number of the last event, or -1 when the lease is lost (nothing was written)
-- Events those given
--@include base
--@include queue
--@include job
if not holds_lease(KEYS[1], a.worker, a.lease) then return -1 end
local seq = -1
for _, event in ipairs(a.events) do
  seq = emit(a.job, event[1], event[2])
  if event[1] == 'delta' then redis.call('HSET', KEYS[1], 'text_seq', seq) end
end
if a.progress then redis.call('HSET', KEYS[1], 'progress', a.progress) end
return seq
