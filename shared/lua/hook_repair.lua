-- hook_repair: looks at jobs with a webhook that are not known to be final. One that is was ended by a process of a
-- release that knows of no webhooks: its delivery is noted now.
-- KEYS  1 jobs with a webhook by when they are looked at
-- ARGV  prefix, limit (jobs of one call)
-- Returns {how many were looked at, how many deliveries were noted}
--@include base
--@include hooks
local ENDED = {complete = true, failed = true, cancelled = true, expired = true}
local noted = 0
local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', NOW, 'LIMIT', 0, a.limit)
for _, job_id in ipairs(ids) do
  local row = redis.call('HMGET', P .. 'job:' .. job_id, 'status', 'tenant', 'hook', 'seq', 'finished_ms')
  local is_whole = row[2] and row[3] and tonumber(row[4]) and tonumber(row[5])
  if ENDED[row[1]] and is_whole then
    if hook_end(job_id, row[2], row[3], tonumber(row[4]), row[1], tonumber(row[5])) then noted = noted + 1 end
  elseif row[1] and row[3] and not ENDED[row[1]] then
    watch_hook(job_id)
  else
    redis.call('ZREM', KEYS[1], job_id)
  end
end
return {#ids, noted}
