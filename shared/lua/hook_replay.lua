-- hook_replay: sends deliveries again: one by its id, or those of a status, the oldest first. The schedule begins anew,
-- also after 410; the id stays. One that is pending is due at once.
-- KEYS  1 idempotency key (any name when none was sent)   2 the tenant's deliveries of that status
-- ARGV  prefix, tenant, id (absent: by status), low, high (lexical bounds of ids), limit, idem_body
-- Returns {'ok', how many, id of the last when there are more, else '', '0' or '1' replayed}   {'none'} no such delivery   {'mismatch'}
--@include base
--@include hooks
--@include couriers
local again = replay(KEYS[1])
if again then
  if again[1] == 'ok' then again[4] = '1' end
  return again
end
local seen = {}

local function send(id)
  local record = P .. 'delivery:' .. a.tenant .. ':' .. id
  local row = redis.call('HMGET', record, 'status', 'mark', 'keep_ms', 'at_ms')
  if not row[1] then return false end
  local list, endpoint, keep_ms = P .. 'deliveries:' .. a.tenant, a.tenant .. ':' .. row[2], tonumber(row[3])
  if row[1] ~= 'pending' then
    redis.call('HSET', record, 'status', 'pending', 'tries', 0, 'ended_ms', '')
    redis.call('ZREM', list .. ':' .. row[1], id)
    redis.call('ZADD', P .. 'undelivered', row[4], a.tenant .. ':' .. id)
  end
  redis.call('HSET', record, 'forced', 1, 'due_ms', NOW, 'round_ms', NOW)
  redis.call('HINCRBY', record, 'replays', 1)
  redis.call('PEXPIRE', record, int(keep_ms + HOOK_LIVES_MS))
  enlist(list .. ':pending', id, keep_ms)
  if not seen[endpoint] then redis.call('DEL', P .. 'hook:' .. endpoint) end
  seen[endpoint] = true
  -- One that is under way just now stays with its courier.
  if not redis.call('ZSCORE', P .. 'hookbusy:' .. endpoint, id) then hand_over(endpoint, id) end
  return true
end

local count, more = 0, ''
if a.id then
  if not send(a.id) then return {'none'} end
  count = 1
else
  local ids = redis.call('ZRANGEBYLEX', KEYS[2], a.low, a.high, 'LIMIT', 0, a.limit + 1)
  if #ids > a.limit then more = ids[a.limit] end
  for place, id in ipairs(ids) do
    if place <= a.limit then
      if send(id) then count = count + 1 else redis.call('ZREM', KEYS[2], id) end
    end
  end
end
local reply = {'ok', int(count), more, '0'}
remember(KEYS[1], reply)
return reply
