-- keys: what scripts that change API keys share. Needs base.

-- How processes name a secret among themselves: the beginning of its hash. shared.ids.secret_mark
local function mark_of(hash)
  return string.sub(hash, 1, 16)
end

-- The admin key of this installation is set from outside: through the API it cannot end, nor lose its scopes.
local function is_admin_key(tenant_record, id)
  return redis.call('HGET', tenant_record, 'admin_key') == id
end

local JOBS_LIVE_MS = 90 * 86400000 -- longer than jobs of a revoked key wait and run

-- The limits of a key that ends hold on for its jobs.
local function keep_limits(record, tenant, id)
  local policy = redis.call('HGET', record, 'policy')
  if policy then redis.call('SET', P .. 'ended:' .. tenant .. ':' .. id, policy, 'PX', JOBS_LIVE_MS) end
end

-- Tells every process to forget what it knows of a key, and which of its secrets live on; none when the key is gone.
local function tell_key(record, id)
  local row = redis.call('HMGET', record, 'hash', 'old_hash', 'old_until_ms')
  local message = id
  if row[1] then message = message .. ' ' .. mark_of(row[1]) end
  if row[2] and tonumber(row[3]) > now then message = message .. ' ' .. mark_of(row[2]) end
  redis.call('PUBLISH', P .. 'revoked', message)
end
