-- pace: what a waiting job may expect, from the lane's slots and the recent run times of its jobs.

-- For the job of `tenant` that has `rank` jobs of its tenant before it. Returns the estimated tokens of these, what
-- the job waits for, and the time to its start in ms: the middle and the 90th percentile; -1 where nothing is known
-- (no worker is alive, or none has run a job here yet).
local function outlook(lane, tenant, rank, est)
  local pace = redis.call('HMGET', P .. 'pace:' .. lane, 'ready', 'running', 'slots', 'n', 's1', 's2')
  local ready, running, slots = tonumber(pace[1] or '0'), tonumber(pace[2] or '0'), tonumber(pace[3] or '0')
  local own = redis.call('ZCARD', P .. 'q:' .. lane .. ':' .. tenant)
  local tokens = tonumber(redis.call('HGET', P .. 'q:' .. lane .. ':tokens', tenant) or '0')
  local ahead_tokens = 0
  if rank > 0 then
    -- Exact at the tail; elsewhere the mean of the queue.
    local all = math.max(0, tokens - est)
    ahead_tokens = own <= rank + 1 and all or math.floor(all * rank / (own - 1))
  end
  local limit = tonumber(redis.call('HGET', P .. 'tenant:' .. tenant, 'max_concurrent') or math.huge)
  local used = tonumber(redis.call('HGET', P .. 'running', tenant) or '0')
  local parked = used >= limit
  -- Tenants share: while one job of this tenant starts, so does about one of each other tenant that waits.
  local others = 0
  if not parked then
    local active = math.max(1, redis.call('ZCARD', P .. 'q:' .. lane .. ':tenants'))
    others = math.min(math.max(0, ready - own), (rank + 1) * (active - 1))
  end
  local servers, free, ahead = slots, slots - running, rank + others
  if limit < servers then
    servers, free = limit, math.min(free, limit - used)
    if parked then ahead = rank end
  end
  free = math.max(0, free)
  local waiting = 'worker'
  if parked then waiting = 'tenantConcurrency' elseif rank > 0 then waiting = 'priority' end
  if slots <= 0 then return ahead_tokens, waiting, -1, -1 end
  if free > ahead then return ahead_tokens, waiting, 0, 0 end
  local n = tonumber(pace[4] or '0')
  if n < 1 then return ahead_tokens, waiting, -1, -1 end
  local mean = tonumber(pace[5]) / n
  local spread = math.sqrt(math.max(0, tonumber(pace[6]) / n - mean * mean))
  local turns = ahead - free + 1
  local middle = (turns - 0.5) * mean / servers
  -- The sum of many run times is nearly normal; one run time is at least a third uncertain.
  local high = middle + 1.2816 * math.sqrt(turns) * math.max(spread, mean / 3) / servers
  return ahead_tokens, waiting, middle, high
end

-- Whole seconds, 1 to 60, until a job of the tenant will probably have started, so that its queue has room.
local function room_in_s(lane, tenant)
  local _, _, middle = outlook(lane, tenant, 0, 0)
  if middle < 0 then return 5 end
  return math.max(1, math.min(60, math.ceil(middle / 1000)))
end
