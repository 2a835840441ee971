-- hook_claim: gives a courier deliveries that are due, endpoint by endpoint in turn.
-- KEYS  1 endpoints by the time of their turn
-- ARGV  prefix, count, share (of one tenant at most, with what this process holds of it), held (map of tenant → how many
--       this process holds), each (requests under way at one endpoint, over all workers), lease_ms (a delivery that was not reported by then is given out again)
-- Returns {now ms, next turn ms or -1, MessagePack list of deliveries, each a list in the order of `shared.webhooks.Due`,
--         how many were ended unsent}
--@include base
--@include hooks
--@include couriers
local LOOK = 100 -- endpoints of one call
local DEFER_MS = 500 -- of a tenant that has its share: others go first
local LATE = '{"at":' .. NOW .. ',"status":null,"error":"expired","ms":0}\n'
local out, held, ended, secrets = {}, a.held, 0, {}
local lease_end = int(now + a.lease_ms)

local function secret_of(tenant)
  if not secrets[tenant] then
    local row = redis.call('HMGET', P .. 'hooksecret:' .. tenant, 'secret', 'old_secret', 'old_until_ms')
    local lives = row[2] and tonumber(row[3] or '0') > now
    secrets[tenant] = {row[1] or '', lives and row[2] or ''}
  end
  return secrets[tenant]
end

local function take(tenant, mark, id)
  local record, endpoint = P .. 'delivery:' .. tenant .. ':' .. id, tenant .. ':' .. mark
  local row = redis.call('HMGET', record, 'status', 'at_ms', 'tries', 'url', 'type', 'job', 'seq', 'row', 'result_bytes', 'data',
    'once', 'forced', 'keep_ms', 'round_ms')
  if row[1] ~= 'pending' then
    redis.call('ZREM', P .. 'hookq:' .. endpoint, id)
    redis.call('ZREM', P .. 'undelivered', tenant .. ':' .. id)
    return
  end
  local gone = row[6] and not row[12] and redis.call('GET', gone_mark(tenant, row[4]))
  if gone and string.sub(row[6], 5, 14) < gone then
    end_delivery(tenant, mark, id, 'gone', tonumber(row[13]))
    ended = ended + 1
    return
  end
  if now - tonumber(row[14] or row[2]) > HOOK_LIVES_MS then
    local attempts = redis.call('HGET', record, 'attempts') or ''
    redis.call('HSET', record, 'attempts', attempts .. LATE)
    end_delivery(tenant, mark, id, 'failed', tonumber(row[13]))
    ended = ended + 1
    return
  end
  local lease, secret = redis.call('HINCRBY', record, 'lease', 1), secret_of(tenant)
  redis.call('ZADD', P .. 'hookq:' .. endpoint, lease_end, id)
  redis.call('ZADD', P .. 'hookbusy:' .. endpoint, lease_end, id)
  held[tenant] = (held[tenant] or 0) + 1
  out[#out + 1] = {id, tenant, mark, lease, tonumber(row[3]), row[4], row[5], tonumber(row[2]), row[6] or '',
    tonumber(row[7] or '0'), row[8] or '', tonumber(row[9] or '0'), row[10] or '', row[11] == '1', secret[1], secret[2]}
end

for _, endpoint in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', NOW, 'LIMIT', 0, LOOK)) do
  if #out >= a.count then break end
  local tenant, mark = string.match(endpoint, '^([^:]+):(.*)$')
  local owner = redis.call('HMGET', P .. 'tenant:' .. tenant, 'id', 'deleting')
  if not owner[1] or owner[2] then
    -- Nothing of it is sent any more; its erasure takes the rest.
    redis.call('ZREM', KEYS[1], endpoint)
  elseif (held[tenant] or 0) >= a.share then
    redis.call('ZADD', KEYS[1], int(now + DEFER_MS), endpoint)
  else
    local fails, alone_until = trouble_of(endpoint)
    local room = alone_until <= now and room_of(endpoint, fails) or 0
    room = math.min(room, a.count - #out, a.share - (held[tenant] or 0))
    if room > 0 then
      for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'hookq:' .. endpoint, '-inf', NOW, 'LIMIT', 0, room)) do
        take(tenant, mark, id)
      end
    end
    line_up(endpoint)
  end
end
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return {NOW, first[2] or '-1', cmsgpack.pack(out), ended}
