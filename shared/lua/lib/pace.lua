-- pace: what a waiting job may expect, from the lane's slots and the recent run times of its jobs.

-- For the job of `tenant` that has `rank` jobs of its tenant before it. Returns the estimated tokens of these, what
-- the job waits for, and the time to its start in ms: the middle and the 90th percentile; -1 where nothing is known
-- (no worker is alive, or none is free and none has run a job here yet). `woken`: a free worker was woken for it.
local function outlook(lane, tenant, rank, est, woken)
  local pace = redis.call('HMGET', P .. 'pace:' .. lane, 'ready', 'running', 'slots', 'n', 's1', 's2', 'shared')
  local ready, running, slots = tonumber(pace[1] or '0'), tonumber(pace[2] or '0'), tonumber(pace[3] or '0')
  local own = redis.call('ZCARD', P .. 'q:' .. lane .. ':' .. tenant)
  local tokens = tonumber(redis.call('HGET', P .. 'q:' .. lane .. ':tokens', tenant) or '0')
  local ahead_tokens = 0
  if rank > 0 then
    -- Exact at the tail; elsewhere the mean of the queue.
    local all = math.max(0, tokens - est)
    ahead_tokens = own <= rank + 1 and all or math.floor(all * rank / (own - 1))
  end
  local limits = redis.call('HMGET', P .. 'tenant:' .. tenant, 'max_concurrent', 'policy')
  local limit = tonumber(limits[1] or math.huge)
  local used = tonumber(redis.call('HGET', P .. 'running', tenant) or '0')
  local parked = used >= limit
  -- Tenants share: while one job of this tenant starts, so do about as many of the others as they weigh.
  local others = 0
  if not parked then
    local weights, mine = 0, tonumber(redis.call('HGET', P .. 'tenant:' .. tenant, 'weight') or '1')
    local active = redis.call('ZRANGE', P .. 'q:' .. lane .. ':tenants', 0, 19)
    for _, other in ipairs(active) do
      if other ~= tenant then
        weights = weights + tonumber(redis.call('HGET', P .. 'tenant:' .. other, 'weight') or '1')
      end
    end
    -- Beyond the first twenty: as these.
    local all = math.max(1, redis.call('ZCARD', P .. 'q:' .. lane .. ':tenants') / math.max(1, #active))
    others = math.floor(math.min(math.max(0, ready - own), (rank + 1) * weights * all / mine))
  end
  local servers, free, ahead = math.min(slots, limit), math.max(0, math.min(slots - running, limit - used)), rank + others
  -- Slots that two lanes share may be taken by the other one: then only a worker that sleeps is free.
  if free > 0 and not woken and pace[7] == '1' and redis.call('SCARD', P .. 'idle:' .. lane) == 0 then free = 0 end
  local waiting = 'worker'
  if parked then waiting = 'tenantConcurrency' elseif rank > 0 then waiting = 'priority' end
  local rated = limits[2] and redis.call('ZSCORE', P .. 'q:' .. lane .. ':rated', tenant)
  if rated then
    local wait = math.max(0, tonumber(rated) - now)
    return ahead_tokens, 'rateLimit', wait, wait
  end
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
