-- queue: the ready structure of a lane. Tenants share by tokens served per weight (virtual counters: what their ended
-- jobs used, and the estimates of those that run); inside a tenant a job's score is queuedAt + class * agingSeconds,
-- so a job is overtaken only by jobs of its tenant that were queued at most one aging time per class after it. A tenant
-- at its concurrency limit is parked: it leaves the order until a slot of its own is free, so that nobody walks past;
-- likewise (`rated`) one that is over its token rate, until that has room.

local LANES = {'interactive', 'batch'}
-- Counters stay within what a score holds exactly.
local MOST = 2 ^ 52

local function served_of(lane, tenant)
  return tonumber(redis.call('HGET', P .. 'q:' .. lane .. ':served', tenant) or '0')
end

-- What the tenant's running jobs are charged for the time being.
local function held_of(lane, tenant)
  return tonumber(redis.call('HGET', P .. 'q:' .. lane .. ':held', tenant) or '0')
end

-- Never not a number, never out of range: a failing command would leave a script half done.
local function bounded(value)
  if value ~= value then return 0 end
  return math.max(-MOST, math.min(value, MOST))
end

-- Thousandths of a token per weight.
local function cost(tokens, weight)
  return math.floor(bounded(math.max(1, tokens) * 1000 / weight))
end

-- Books what a tenant's jobs used, in place of the estimates that were held for them.
local function charge(lane, tenant, used, held)
  local served = bounded(served_of(lane, tenant) + used)
  redis.call('HSET', P .. 'q:' .. lane .. ':served', tenant, int(served))
  local left = redis.call('HINCRBY', P .. 'q:' .. lane .. ':held', tenant, int(0 - held))
  if left <= 0 then
    redis.call('HDEL', P .. 'q:' .. lane .. ':held', tenant)
    left = 0
  end
  redis.call('ZADD', P .. 'q:' .. lane .. ':tenants', 'XX', int(bounded(served + left)), tenant)
end

-- Wakes one worker of the lane that sleeps with a free slot; whether there was one. Claim put it there in the same step
-- in which it found nothing, so no wake-up is lost; one that no longer listens is passed over.
local function wake(lane)
  while true do
    local worker = redis.call('SPOP', P .. 'idle:' .. lane)
    if not worker then return false end
    if redis.call('PUBLISH', P .. 'ctl:' .. worker, 'wake') > 0 then return true end
  end
end

-- Puts a tenant with ready jobs into the order. One that was idle starts at the least counter of those it joins:
-- idleness saves up no credit. Estimates that are held for their running jobs do not count in that: they are taken back,
-- and the newcomer would stand behind jobs that cost nothing.
local function queue_enter(lane, tenant)
  local tenants, all = P .. 'q:' .. lane .. ':tenants', P .. 'q:' .. lane .. ':served'
  local value = served_of(lane, tenant)
  local first = redis.call('ZRANGE', tenants, 0, 9)
  if #first == 0 then first = {'!floor'} end
  local floor = math.huge
  for _, served in ipairs(redis.call('HMGET', all, unpack(first))) do
    floor = math.min(floor, tonumber(served or '0'))
  end
  if floor > value then
    value = floor
    redis.call('HSET', all, tenant, int(value))
  end
  redis.call('ZADD', tenants, int(bounded(value + held_of(lane, tenant))), tenant)
end

-- All ready jobs of a lane, for its figures: the class's place times this, and since when the job is ready, ms.
local CLASSES = {high = 0, normal = 1, low = 2}
local CLASS_SPAN = 2 ^ 43

-- Puts a job into its tenant's ready queue and wakes a worker; whether one was asleep. `est` is its estimated tokens;
-- `class` its priority, where that is at hand.
local function queue_push(job_id, lane, tenant, score, est, class)
  if redis.call('ZADD', P .. 'q:' .. lane .. ':' .. tenant, score, job_id) == 0 then return false end
  class = class or redis.call('HGET', P .. 'job:' .. job_id, 'priority')
  redis.call('ZADD', P .. 'q:' .. lane .. ':ready', int((CLASSES[class] or 1) * CLASS_SPAN + now), job_id)
  if redis.call('HINCRBY', P .. 'pace:' .. lane, 'ready', 1) == 1 then
    redis.call('HSET', P .. 'pace:' .. lane, 'at', NOW)
  end
  redis.call('HINCRBY', P .. 'q:' .. lane .. ':tokens', tenant, est or 0)
  if not redis.call('ZSCORE', P .. 'q:' .. lane .. ':tenants', tenant) then
    if redis.call('SISMEMBER', P .. 'q:' .. lane .. ':parked', tenant) == 1 then return false end
    if redis.call('ZSCORE', P .. 'q:' .. lane .. ':rated', tenant) then return false end
    queue_enter(lane, tenant)
  end
  return wake(lane)
end

-- What follows when `count` jobs of `est` tokens have left a tenant's ready queue.
local function queue_left(lane, tenant, count, est)
  redis.call('HINCRBY', P .. 'pace:' .. lane, 'ready', 0 - count)
  if redis.call('EXISTS', P .. 'q:' .. lane .. ':' .. tenant) == 1 then
    redis.call('HINCRBY', P .. 'q:' .. lane .. ':tokens', tenant, 0 - est)
    return true
  end
  redis.call('HDEL', P .. 'q:' .. lane .. ':tokens', tenant)
  redis.call('ZREM', P .. 'q:' .. lane .. ':tenants', tenant)
  redis.call('SREM', P .. 'q:' .. lane .. ':parked', tenant)
  redis.call('ZREM', P .. 'q:' .. lane .. ':rated', tenant)
  return false
end

-- Takes a job out of its tenant's ready queue, wherever it stands.
local function queue_remove(job_id, lane, tenant, est)
  if redis.call('ZREM', P .. 'q:' .. lane .. ':' .. tenant, job_id) == 1 then
    redis.call('ZREM', P .. 'q:' .. lane .. ':ready', job_id)
    queue_left(lane, tenant, 1, tonumber(est or '0'))
  end
end

-- A tenant has free slots again: its jobs return to the order of each lane in which it was parked.
local function unpark(tenant)
  for _, lane in ipairs(LANES) do
    if redis.call('SREM', P .. 'q:' .. lane .. ':parked', tenant) == 1 then
      local counter = bounded(served_of(lane, tenant) + held_of(lane, tenant))
      redis.call('ZADD', P .. 'q:' .. lane .. ':tenants', int(counter), tenant)
      wake(lane)
    end
  end
end

-- Tenants whose token rate has room again return to the order; one by name, or those that are due.
local function unrate(lane, tenant)
  local rated = P .. 'q:' .. lane .. ':rated'
  local due = tenant and {tenant} or redis.call('ZRANGEBYSCORE', rated, '-inf', NOW)
  for _, id in ipairs(due) do
    if redis.call('ZREM', rated, id) == 1 then
      redis.call('ZADD', P .. 'q:' .. lane .. ':tenants', int(bounded(served_of(lane, id) + held_of(lane, id))), id)
      if tenant then wake(lane) end
    end
  end
end

-- Forgets workers of the lane that are gone, and adds up the slots of those that live.
local function count_slots(lane)
  local alive, slots = P .. 'workers:' .. lane, P .. 'slots:' .. lane
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', alive, '-inf', NOW)) do
    redis.call('ZREM', alive, gone)
    redis.call('HDEL', slots, gone)
    redis.call('SREM', P .. 'idle:' .. lane, gone)
  end
  local sum, shared = 0, 0
  for _, count in ipairs(redis.call('HVALS', slots)) do
    local number, mark = string.match(count, '^(%d+)(s?)$')
    sum = sum + tonumber(number or '0')
    if mark == 's' then shared = 1 end
  end
  redis.call('HSET', P .. 'pace:' .. lane, 'slots', sum, 'shared', shared)
end

-- How many jobs of a tenant wait, and the tenant's bound of them. `limit` is its max_queued field or false.
local function queue_room(tenant, limit)
  local waiting = tonumber(redis.call('HGET', P .. 'scheduled', tenant) or '0')
  for _, lane in ipairs(LANES) do
    waiting = waiting + redis.call('ZCARD', P .. 'q:' .. lane .. ':' .. tenant)
  end
  return waiting, tonumber(limit or '100000')
end

-- Takes a job out of the delayed ones; `status` is what it was.
local function unschedule(job_id, lane, tenant, status)
  redis.call('ZREM', P .. 'delayed:' .. lane, job_id)
  redis.call('SREM', P .. 'slowed:' .. tenant, job_id)
  if status == 'scheduled' and redis.call('HINCRBY', P .. 'scheduled', tenant, -1) <= 0 then
    redis.call('HDEL', P .. 'scheduled', tenant)
  end
end

-- A job waits for its budget no longer.
local function unpause(job_id, tenant)
  if redis.call('ZREM', P .. 'paused', job_id) == 1 then redis.call('SREM', P .. 'paused:' .. tenant, job_id) end
end

-- What a tenant's jobs wait for a budget for may have become less: they are looked at anew, at the next upkeep.
local function budget_freed(tenant)
  for _, job_id in ipairs(redis.call('SMEMBERS', P .. 'paused:' .. tenant)) do
    redis.call('ZADD', P .. 'paused', 'XX', NOW, job_id)
  end
end

-- A tenant's limits have changed: what waits for them is looked at anew, at the next upkeep.
local function limits_changed(tenant)
  for _, lane in ipairs(LANES) do unrate(lane, tenant) end
  unpark(tenant)
  budget_freed(tenant)
  for _, job_id in ipairs(redis.call('SMEMBERS', P .. 'slowed:' .. tenant)) do
    for _, lane in ipairs(LANES) do redis.call('ZADD', P .. 'delayed:' .. lane, 'XX', NOW, job_id) end
  end
  for _, lane in ipairs(LANES) do wake(lane) end
end

-- Puts a job off until its token rate has room, at `due` (ms, as text).
local function put_off(job_id, lane, tenant, due)
  redis.call('ZADD', P .. 'delayed:' .. lane, due, job_id)
  redis.call('SADD', P .. 'slowed:' .. tenant, job_id)
  redis.call('HINCRBY', P .. 'scheduled', tenant, 1)
end

-- A token rate of a tenant has more room than was thought: a few of its jobs that wait for one are looked at now.
local function rate_refunded(tenant)
  for _, lane in ipairs(LANES) do
    if redis.call('ZSCORE', P .. 'q:' .. lane .. ':rated', tenant) then unrate(lane, tenant) end
  end
  for _, job_id in ipairs(redis.call('SRANDMEMBER', P .. 'slowed:' .. tenant, 3)) do
    for _, lane in ipairs(LANES) do
      if redis.call('ZSCORE', P .. 'delayed:' .. lane, job_id) then
        redis.call('ZADD', P .. 'delayed:' .. lane, 'XX', NOW, job_id)
        wake(lane)
      end
    end
  end
end

-- Makes up to `most` delayed jobs of a lane that are due ready.
local function promote(lane, most)
  unrate(lane)
  for _, job_id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'delayed:' .. lane, '-inf', NOW, 'LIMIT', 0, most)) do
    local key = P .. 'job:' .. job_id
    local row = redis.call('HMGET', key, 'status', 'tenant', 'score', 'est', 'wait_reason')
    if row[1] == 'queued' and row[5] == 'rateLimit' then
      unschedule(job_id, lane, row[2], 'scheduled')
      redis.call('HSET', key, 'due_ms', '', 'wait_reason', '', 'told', '')
      queue_push(job_id, lane, row[2], tonumber(row[3]), tonumber(row[4] or '0'))
    elseif row[1] == 'scheduled' or row[1] == 'waiting' then
      unschedule(job_id, lane, row[2], row[1])
      redis.call('HSET', key, 'status', 'queued', 'queued_ms', NOW, 'due_ms', '', 'wait_reason', '', 'told', '')
      emit(job_id, 'job.queued', '{}')
      queue_push(job_id, lane, row[2], tonumber(row[3]), tonumber(row[4] or '0'))
    else
      redis.call('ZREM', P .. 'delayed:' .. lane, job_id)
    end
  end
end
