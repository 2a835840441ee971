-- fleet: figures of what all processes have in common, for metrics.
-- KEYS  none
-- ARGV  prefix
-- Returns a flat list of name, value: per lane `<lane> ready <class>`, `<lane> oldest <class>` (since when the oldest of
--       them is ready, ms; absent without any), `<lane> running`, `delayed`, `parked`, `rated`, `workers`, `slots`;
--       `paused`, `kept`, `trash`, `webhooks` (deliveries that are due or to be tried again), `webhook` (when the event of
--       the oldest was, ms; absent without any), `now`
--@include base
--@include queue
local MOST_STALE = 100 -- that are taken out in one call
local out = {}
local function put(name, value)
  out[#out + 1] = name
  out[#out + 1] = value
end

local stale = 0
for _, lane in ipairs(LANES) do
  local ready, pace = P .. 'q:' .. lane .. ':ready', redis.call('HMGET', P .. 'pace:' .. lane, 'running', 'slots')
  for class, place in pairs(CLASSES) do
    local from = place * CLASS_SPAN
    local low, high = int(from), '(' .. int(from + CLASS_SPAN)
    local oldest
    repeat
      oldest = redis.call('ZRANGEBYSCORE', ready, low, high, 'WITHSCORES', 'LIMIT', 0, 1)
      -- A worker of a release before 0.2 does not know this index, and left a job in it.
      local gone = oldest[1] and redis.call('HGET', P .. 'job:' .. oldest[1], 'status') ~= 'queued'
      if gone then
        redis.call('ZREM', ready, oldest[1])
        stale = stale + 1
      end
    until not gone or stale >= MOST_STALE
    put(lane .. ' ready ' .. class, redis.call('ZCOUNT', ready, low, high))
    if oldest[1] then put(lane .. ' oldest ' .. class, int(tonumber(oldest[2]) - from)) end
  end
  put(lane .. ' running', math.max(0, tonumber(pace[1] or '0')))
  put(lane .. ' slots', tonumber(pace[2] or '0'))
  put(lane .. ' delayed', redis.call('ZCARD', P .. 'delayed:' .. lane))
  put(lane .. ' parked', redis.call('SCARD', P .. 'q:' .. lane .. ':parked'))
  put(lane .. ' rated', redis.call('ZCARD', P .. 'q:' .. lane .. ':rated'))
  put(lane .. ' workers', redis.call('ZCOUNT', P .. 'workers:' .. lane, NOW, '+inf'))
end
put('paused', redis.call('ZCARD', P .. 'paused'))
put('kept', redis.call('ZCARD', P .. 'retention'))
put('webhooks', redis.call('ZCARD', P .. 'undelivered'))
local undelivered = redis.call('ZRANGE', P .. 'undelivered', 0, 0, 'WITHSCORES')
if undelivered[1] then put('webhook', int(undelivered[2])) end
put('trash', redis.call('SCARD', P .. 'trash'))
put('now', NOW)
return out
