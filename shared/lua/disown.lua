-- disown: a worker whose claim was not answered hands back what it was given without knowing. It may look at all leases:
-- this is done after an outage only.
-- KEYS  1 leases
-- ARGV  prefix, worker, jobs (list of {job id, lease} that it does know of)
-- Returns {job id …} that were handed back
-- Events job.queued, job.cancelled
--@include base
--@include queue
--@include limits
--@include hooks
--@include books
--@include outcomes
--@include job
local known, done = {}, {}
for _, job in ipairs(a.jobs) do known[job[1] .. ' ' .. int(job[2])] = true end
for _, job_id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local key = P .. 'job:' .. job_id
  if redis.call('HGET', key, 'owner') == a.worker then
    local row = load(key)
    if row.lease and holds(row, a.worker, row.lease) and sound(row) and not known[job_id .. ' ' .. row.lease] then
      if row.status == 'cancelling' then
        release(job_id, key, row)
        finish(job_id, key, row, 'cancelled', '{}', 'settled', row.lease, 'cancelled_ms', NOW)
      else
        hand_back(job_id, key, row)
      end
      done[#done + 1] = job_id
    end
  end
end
flush()
return done
