-- listen: somebody listens to these jobs, or did until just now. Only for jobs that are cancelled otherwise.
-- KEYS  1 jobs that somebody must listen to
-- ARGV  prefix, jobs (list of {job id, ms until it is cancelled unless this is called again})
-- Returns how many
--@include base
-- Never earlier than before: another process may have a listener too. A job that has ended is not in there.
for _, job in ipairs(a.jobs) do redis.call('ZADD', KEYS[1], 'XX', 'GT', now + job[2], job[1]) end
return #a.jobs
