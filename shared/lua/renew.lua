-- renew: a worker's heartbeat; extends the leases of all its jobs in one call.
-- KEYS  1 leases
-- ARGV  prefix, worker, lanes (list of {lane, slots that it offers there: '20', or '15s' when other lanes share them}),
--       lease_ms, alive_ms (how long the worker counts as alive; 0: it is leaving), jobs (list of {job id, lease}), seen
--       (list of {job id, call under way, output tokens seen of it}), record (JSON of what the worker says of itself, kept
--       for lease_ms; '' takes it away: the process ends)
-- Returns per job 1 renewed   0 the lease is lost   2 renewed, and its cancellation was asked for
--@include base
--@include queue
--@include job
for _, lane in ipairs(a.lanes) do
  local alive, slots = P .. 'workers:' .. lane[1], P .. 'slots:' .. lane[1]
  if a.alive_ms > 0 then
    redis.call('ZADD', alive, int(now + a.alive_ms), a.worker)
    redis.call('HSET', slots, a.worker, lane[2])
  else
    redis.call('ZREM', alive, a.worker)
    redis.call('HDEL', slots, a.worker)
    redis.call('SREM', P .. 'idle:' .. lane[1], a.worker)
    -- It may have been woken just now and pass the work by.
    if redis.call('EXISTS', P .. 'q:' .. lane[1] .. ':tenants') == 1 then wake(lane[1]) end
  end
  count_slots(lane[1])
end
local states, renewed = {}, {}
for i, job in ipairs(a.jobs) do
  local row = redis.call('HMGET', P .. 'job:' .. job[1], 'owner', 'lease', 'status')
  states[i] = 0
  if row[1] == a.worker and row[2] == tostring(job[2]) and (row[3] == 'processing' or row[3] == 'cancelling') then
    -- A lease that lapsed during an outage and that nobody took is still the owner's.
    renewed[#renewed + 1] = int(now + a.lease_ms)
    renewed[#renewed + 1] = job[1]
    states[i] = row[3] == 'cancelling' and 2 or 1
  end
end
with_all('ZADD', KEYS[1], renewed)
for _, call in ipairs(a.seen or {}) do
  local open = P .. 'open:' .. call[1]
  if redis.call('HEXISTS', open, call[2]) == 1 then redis.call('HSET', open, call[2] .. ':o', int(call[3])) end
end
if a.record == '' then
  redis.call('DEL', P .. 'worker:' .. a.worker)
  redis.call('ZREM', P .. 'fleet', a.worker)
elseif a.record then
  redis.call('SET', P .. 'worker:' .. a.worker, a.record, 'PX', int(a.lease_ms))
  redis.call('ZADD', P .. 'fleet', int(now + a.lease_ms), a.worker)
  redis.call('ZREMRANGEBYSCORE', P .. 'fleet', '-inf', NOW)
end
return states
