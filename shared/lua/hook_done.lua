-- hook_done: a courier tells what became of deliveries that it was given.
-- KEYS  1 endpoints by the time of their turn
-- ARGV  prefix, each (as hook_claim), ended: a list of {id, tenant, mark, lease, outcome: delivered | retry | failed | gone | handback, attempt
--       (JSON: at, status, error, ms; absent for handback), delay_ms (for retry), pause_ms (the endpoint wants to be left
--       alone for so long)}
-- Returns per delivery `ok`, or `lost`: it is gone, has ended, or was given out again (a success counts all the same)
--@include base
--@include hooks
--@include couriers
local MOST_TOLD = 16384 -- bytes of attempts that are kept
local touched, states = {}, {}

local function report(one)
  local endpoint, record = one.tenant .. ':' .. one.mark, P .. 'delivery:' .. one.tenant .. ':' .. one.id
  local row = redis.call('HMGET', record, 'status', 'lease', 'tries', 'made', 'keep_ms', 'url')
  local mine = row[2] == tostring(one.lease)
  if mine or not row[1] then redis.call('ZREM', P .. 'hookbusy:' .. endpoint, one.id) end
  if not row[1] then return 'lost' end -- erased: nothing of it may come back
  touched[endpoint] = true
  if row[1] ~= 'pending' or not (mine or one.outcome == 'delivered') then return 'lost' end
  -- Nobody holds it now: the same report, sent again, is one for a lost lease.
  redis.call('HINCRBY', record, 'lease', 1)
  if one.outcome == 'handback' then
    redis.call('ZADD', P .. 'hookq:' .. endpoint, NOW, one.id)
    return 'ok'
  end
  local told = redis.call('HGET', record, 'attempts') or ''
  if #told > MOST_TOLD then told = string.sub(told, (string.find(told, '\n', #told / 2, true) or #told) + 1) end
  redis.call('HSET', record, 'tries', int(tonumber(row[3]) + 1), 'made', int(tonumber(row[4]) + 1),
    'attempts', told .. one.attempt .. '\n')
  if one.outcome == 'retry' then
    local due = int(now + one.delay_ms)
    redis.call('HSET', record, 'due_ms', due)
    redis.call('ZADD', P .. 'hookq:' .. endpoint, due, one.id)
  else
    end_delivery(one.tenant, one.mark, one.id, one.outcome, tonumber(row[5]))
  end
  local state = P .. 'hook:' .. endpoint
  if one.outcome == 'delivered' then
    redis.call('HDEL', state, 'fails', 'rest_ms') -- what the receiver has wished for stands
  elseif one.outcome == 'gone' then
    redis.call('SET', gone_mark(one.tenant, row[6]), ulid_time(), 'EX', 30 * 86400)
  else
    local fails = redis.call('HINCRBY', state, 'fails', 1)
    if fails >= TROUBLED then
      redis.call('HSET', state, 'rest_ms', int(now + math.min(LONGEST_PAUSE_MS, 1000 * 2 ^ math.min(fails - TROUBLED, 20))))
    end
    if one.pause_ms then redis.call('HSET', state, 'until_ms', int(now + one.pause_ms)) end
    redis.call('EXPIRE', state, 86400)
  end
  return 'ok'
end

for place, one in ipairs(a.ended) do states[place] = report(one) end
for endpoint in pairs(touched) do line_up(endpoint) end
return states
