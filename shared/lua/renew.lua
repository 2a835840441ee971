-- renew: a worker's heartbeat; extends the leases of all its jobs in one call.
-- KEYS  1 leases   2 live workers of the lane
-- ARGV  prefix, worker, lease_ms, alive_ms (how long the worker counts as alive), jobs (list of {job id, lease})
-- Returns per job 1 renewed   0 the lease is lost   2 renewed, and its cancellation was asked for
--@include base
--@include queue
--@include job
redis.call('ZADD', KEYS[2], now + a.alive_ms, a.worker)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local states = {}
for i, job in ipairs(a.jobs) do
  local key = P .. 'job:' .. job[1]
  if holds_lease(key, a.worker, job[2]) then
    -- A lease that lapsed during an outage and that nobody took is still the owner's.
    redis.call('ZADD', KEYS[1], now + a.lease_ms, job[1])
    states[i] = redis.call('HGET', key, 'status') == 'cancelling' and 2 or 1
  else
    states[i] = 0
  end
end
return states
