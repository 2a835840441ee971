-- job: steps that several scripts share. `key` is the job's record.

local function job_tokens(key)
  local t = redis.call('HMGET', key, 'tok_in', 'tok_out', 'tok_embed')
  return tonumber(t[1] or '0') + tonumber(t[2] or '0') + tonumber(t[3] or '0')
end

-- Whether the caller still holds the job: same worker, same lease number, and the job is running.
local function holds_lease(key, worker, lease)
  local row = redis.call('HMGET', key, 'owner', 'lease', 'status')
  return row[1] == worker and row[2] == tostring(lease) and (row[3] == 'processing' or row[3] == 'cancelling')
end

-- Books what was in flight when a worker let go of a job: the estimates of its calls, as wasted. If such a call ends
-- after all (its worker was only frozen), finish_step puts the true figure in its place.
local function book_open_calls(job_id, key)
  local open = P .. 'open:' .. job_id
  local calls = redis.call('HGETALL', open)
  for i = 1, #calls, 2 do
    redis.call('HINCRBY', key, 'tok_in', calls[i + 1])
    redis.call('HINCRBY', key, 'tok_wasted', calls[i + 1])
    redis.call('HINCRBY', key, 'estimated', 1)
    redis.call('HSET', P .. 'journal:' .. job_id, 'call:' .. calls[i], calls[i + 1])
  end
  if #calls > 0 then redis.call('DEL', open) end
end

-- Takes a job off its worker: lease, slot, and the correction of the tenant's counter by what was really used.
local function release(job_id, key)
  book_open_calls(job_id, key)
  local row = redis.call('HMGET', key, 'tenant', 'lane', 'charged', 'tok_at_claim', 'weight')
  local tenant, lane = row[1], row[2]
  redis.call('ZREM', P .. 'leases', job_id)
  if redis.call('HINCRBY', P .. 'running', tenant, -1) <= 0 then
    redis.call('HDEL', P .. 'running', tenant)
  end
  local used = job_tokens(key) - tonumber(row[4] or '0')
  local weight = tonumber(row[5] or '1')
  charge(lane, tenant, math.floor((used - tonumber(row[3] or '0')) * 1000 / weight))
  redis.call('HDEL', key, 'owner')
  -- A tenant at its limit has a free slot again: sleeping workers passed its jobs over.
  if redis.call('HEXISTS', P .. 'tenant:' .. tenant, 'max_concurrent') == 1 then
    redis.call('PUBLISH', P .. 'wake:' .. lane, '1')
  end
end

-- Writes a final state, once, with its event; the record stays until `retention_ms` from now.
local function finish(job_id, key, status, data)
  redis.call('HSET', key, 'status', status, 'finished_ms', int(now))
  if status == 'cancelled' then
    redis.call('HSET', key, 'cancelled_ms', int(now))
  end
  local keep = tonumber(redis.call('HGET', key, 'retention_ms'))
  redis.call('HSET', key, 'expires_ms', int(now + keep))
  redis.call('ZADD', P .. 'retention', now + keep, job_id)
  redis.call('ZREM', P .. 'expiring', job_id)
  emit(job_id, 'job.' .. status, data)
end
