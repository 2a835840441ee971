-- tell: writes an event to queued jobs whose outlook has changed much since they were last told: their place is half
-- of what it was or less, or they wait for something else. For jobs that somebody follows.
-- KEYS  none
-- ARGV  prefix, jobs (list of job ids)
-- Returns per job 1 it is queued   0 it is not
-- Events job.queue
--@include base
--@include pace
local states = {}
for i, job_id in ipairs(a.jobs) do
  local key = P .. 'job:' .. job_id
  local row = redis.call('HMGET', key, 'status', 'tenant', 'lane', 'est', 'told', 'wait_reason', 'due_ms', 'wait_for')
  local rank = row[1] == 'queued' and redis.call('ZRANK', P .. 'q:' .. row[3] .. ':' .. row[2], job_id)
  states[i] = 0
  if row[1] == 'queued' and not rank and row[6] == 'rateLimit' then
    states[i] = 1
    local waiting = row[8] == 'worker' and 'worker' or 'rateLimit'
    if row[5] ~= waiting then
      redis.call('HSET', key, 'told', waiting)
      local wait = string.format('%.1f', math.max(0, tonumber(row[7] or NOW) - now) / 1000)
      emit(job_id, 'job.queue', '{"position":null,"aheadTokens":null,"eta":{"p50Seconds":' .. wait .. ',"p90Seconds":' ..
        wait .. '},"waitingOn":"' .. waiting .. '"}')
    end
  elseif rank then
    states[i] = 1
    local ahead, waiting, middle, high = outlook(row[3], row[2], rank, tonumber(row[4] or '0'))
    local place, before = string.match(row[5] or '', '^(%d+) (%a+)$')
    if not place or (rank + 1) * 2 <= tonumber(place) or before ~= waiting then
      local eta = 'null'
      if middle >= 0 then
        eta = string.format('{"p50Seconds":%.1f,"p90Seconds":%.1f}', middle / 1000, high / 1000)
      end
      redis.call('HSET', key, 'told', (rank + 1) .. ' ' .. waiting)
      emit(job_id, 'job.queue', '{"position":' .. (rank + 1) .. ',"aheadTokens":' .. int(ahead) .. ',"eta":' .. eta ..
        ',"waitingOn":"' .. waiting .. '"}')
    end
  end
end
return states
