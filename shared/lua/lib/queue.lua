-- queue: the ready structure of a lane. Tenants share by tokens served per weight (virtual counters); inside a
-- tenant a job's score is queuedAt + class * agingSeconds, so a job is overtaken only by jobs of its tenant that
-- were queued at most one aging time per class after it.

local function served_of(lane, tenant)
  return tonumber(redis.call('HGET', P .. 'q:' .. lane .. ':served', tenant) or '0')
end

-- Moves a tenant's virtual counter by `amount` thousandths of a token per weight.
local function charge(lane, tenant, amount)
  local value = served_of(lane, tenant) + amount
  -- Never not a number, never beyond what a score holds exactly: a failing ZADD would leave a script half done.
  if value ~= value then value = 0 end
  value = math.max(-2 ^ 52, math.min(value, 2 ^ 52))
  redis.call('HSET', P .. 'q:' .. lane .. ':served', tenant, int(value))
  redis.call('ZADD', P .. 'q:' .. lane .. ':tenants', 'XX', value, tenant)
end

-- Puts a job into its tenant's ready queue and wakes a worker. A tenant that was idle starts at the least counter
-- of the active ones: idleness saves up no credit.
local function queue_push(job_id, lane, tenant, score)
  local tenants = P .. 'q:' .. lane .. ':tenants'
  redis.call('ZADD', P .. 'q:' .. lane .. ':' .. tenant, score, job_id)
  if not redis.call('ZSCORE', tenants, tenant) then
    local value = served_of(lane, tenant)
    local least = redis.call('ZRANGE', tenants, 0, 0, 'WITHSCORES')
    local floor = tonumber(least[2] or redis.call('HGET', P .. 'q:' .. lane .. ':served', '!floor') or '0')
    if floor > value then
      value = floor
      redis.call('HSET', P .. 'q:' .. lane .. ':served', tenant, int(value))
    end
    redis.call('ZADD', tenants, value, tenant)
  end
  redis.call('PUBLISH', P .. 'wake:' .. lane, '1')
end

local function queue_remove(job_id, lane, tenant)
  local ready = P .. 'q:' .. lane .. ':' .. tenant
  redis.call('ZREM', ready, job_id)
  if redis.call('EXISTS', ready) == 0 then
    redis.call('ZREM', P .. 'q:' .. lane .. ':tenants', tenant)
  end
end

-- How many jobs of a tenant wait, and the tenant's bound of them. `limit` is its max_queued field or false.
local function queue_room(tenant, limit)
  local waiting = tonumber(redis.call('HGET', P .. 'scheduled', tenant) or '0')
  for _, lane in ipairs({'interactive', 'batch'}) do
    waiting = waiting + redis.call('ZCARD', P .. 'q:' .. lane .. ':' .. tenant)
  end
  return waiting, tonumber(limit or '100000')
end

-- The tenant that is to be served next and below its concurrency limit, with its weight; nil when there is none.
-- `limits` caches tenant records within one call.
local function next_tenant(lane, limits)
  local tenants = P .. 'q:' .. lane .. ':tenants'
  local start = 0
  while true do
    local page = redis.call('ZRANGE', tenants, start, start + 49)
    if #page == 0 then return nil end
    for _, tenant in ipairs(page) do
      local limit = limits[tenant]
      if not limit then
        local row = redis.call('HMGET', P .. 'tenant:' .. tenant, 'max_concurrent', 'weight')
        limit = {max = tonumber(row[1] or false), weight = tonumber(row[2] or '1')}
        limits[tenant] = limit
      end
      local running = tonumber(redis.call('HGET', P .. 'running', tenant) or '0')
      if not limit.max or running < limit.max then return tenant, limit.weight end
    end
    start = start + 50
  end
end

-- Takes the next job of a tenant out of its queue.
local function queue_pop(lane, tenant)
  local ready = P .. 'q:' .. lane .. ':' .. tenant
  local popped = redis.call('ZPOPMIN', ready)
  redis.call('HSET', P .. 'q:' .. lane .. ':served', '!floor', int(served_of(lane, tenant)))
  if redis.call('EXISTS', ready) == 0 then
    redis.call('ZREM', P .. 'q:' .. lane .. ':tenants', tenant)
  end
  return popped[1]
end
