-- couriers: how deliveries are shared out. Deliveries of a tenant to one origin (an endpoint, `<tenant>:<mark>`) queue by
-- the time they are due; endpoints take turns by the time at which they have something to do. Needs base and hooks;
-- scripts that give deliveries out or take them back have `a.each`: requests under way at one endpoint, over all workers.

local TROUBLED = 5 -- failures in a row after which an endpoint gets one at a time, and is let alone in between
local LONGEST_PAUSE_MS = 60000

local function most_of(fails)
  return tonumber(fails or '0') >= TROUBLED and 1 or a.each
end

-- How many more requests an endpoint may have under way, and when the first of them counts as lost.
local function room_of(endpoint, fails)
  local busy = P .. 'hookbusy:' .. endpoint
  redis.call('ZREMRANGEBYSCORE', busy, '-inf', NOW)
  local first = redis.call('ZRANGE', busy, 0, 0, 'WITHSCORES')
  return most_of(fails) - redis.call('ZCARD', busy), tonumber(first[2])
end

-- What is known of an endpoint that fails: failures in a row, and until when it is let alone.
local function trouble_of(endpoint)
  local row = redis.call('HMGET', P .. 'hook:' .. endpoint, 'fails', 'until_ms', 'rest_ms')
  return row[1], math.max(tonumber(row[2] or '0'), tonumber(row[3] or '0'))
end

-- Gives an endpoint its next turn: behind those that had none since.
local function line_up(endpoint)
  local head = redis.call('ZRANGE', P .. 'hookq:' .. endpoint, 0, 0, 'WITHSCORES')
  if not head[1] then
    redis.call('ZREM', P .. 'hooks', endpoint)
    return
  end
  local fails, alone_until = trouble_of(endpoint)
  local at = math.max(now, tonumber(head[2]), alone_until)
  local room, lost_at = room_of(endpoint, fails)
  if room <= 0 then at = math.max(at, lost_at) end
  redis.call('ZADD', P .. 'hooks', int(at), endpoint)
end

-- A delivery has ended as delivered, failed or gone; it is kept for a while.
local function end_delivery(tenant, mark, id, status, keep_ms)
  local record, list, endpoint = P .. 'delivery:' .. tenant .. ':' .. id, P .. 'deliveries:' .. tenant, tenant .. ':' .. mark
  redis.call('HSET', record, 'status', status, 'ended_ms', NOW, 'due_ms', '')
  redis.call('PEXPIRE', record, int(keep_ms))
  redis.call('ZREM', list .. ':pending', id)
  enlist(list .. ':' .. status, id, keep_ms)
  redis.call('ZREM', P .. 'undelivered', tenant .. ':' .. id)
  redis.call('ZREM', P .. 'hookq:' .. endpoint, id)
end

-- How a URL is named where it was found to be gone: 410 ends what jobs that were made before it would still send there.
local function gone_mark(tenant, url)
  return P .. 'hookgone:' .. tenant .. ':' .. string.sub(redis.sha1hex(url), 1, 16)
end
