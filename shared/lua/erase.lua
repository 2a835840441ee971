-- erase: looks at keys, and takes away what is a tenant's that is being deleted: whole keys by their name or by whom they
-- belong to, and its members of those that all tenants share. Jobs are left to erase_jobs; the tenant's record, its place
-- in the index and the index of its keys to erase_tenant; the audit log stays. Safe to repeat.
-- KEYS  1 the tenant's record   2 index of its API keys
-- ARGV  prefix, tenant, names (list of keys, with the prefix), blobs (how many were deleted besides)
-- Returns {how many of the keys held something of the tenant, {id of each job among them …}}   'none' the tenant is not
--         being deleted
--@include base
--@include queue
--@include erasure
if redis.call('HEXISTS', KEYS[1], 'deleting') == 0 then return 'none' end
local T = a.tenant
local LAST = {['tenants'] = true, ['tenant:' .. T] = true, ['keys:' .. T] = true, ['audit'] = true}
local MEMBERS = {running = 'HDEL', scheduled = 'HDEL'}
for _, lane in ipairs(LANES) do
  local q = 'q:' .. lane .. ':'
  MEMBERS[q .. 'tenants'], MEMBERS[q .. 'rated'], MEMBERS[q .. 'parked'] = 'ZREM', 'ZREM', 'SREM'
  MEMBERS[q .. 'served'], MEMBERS[q .. 'held'], MEMBERS[q .. 'tokens'] = 'HDEL', 'HDEL', 'HDEL'
end
local OF_LANES = {}
for _, lane in ipairs(LANES) do OF_LANES['q:' .. lane .. ':' .. T] = true end
local counts = {documents = 0, keys = 0, ledger = 0, tokens = 0, nano = 0, redis_keys = 0, deliveries = 0, blobs = a.blobs}
local found, jobs = 0, {}

-- A read of what may be somebody else's: with an empty prefix all of a shared Redis is looked at.
local function value(command, ...)
  local read = redis.pcall(command, ...)
  return type(read) == 'string' and read or nil
end

local function is_ours(name)
  return value('HGET', name, 'tenant') == T
end

local function is_key(id)
  return redis.call('ZSCORE', KEYS[2], id)
end

local function take(name)
  found = found + 1
  counts.redis_keys = counts.redis_keys + redis.call('UNLINK', name)
end

-- What goes with a key that has the tenant in its name.
local function reckon(name, rest)
  if rest == 'books:' .. T then
    counts.tokens = counts.tokens + tonumber(redis.call('HGET', name, 'tt') or '0')
    counts.nano = counts.nano + tonumber(redis.call('HGET', name, 'tn') or '0')
  elseif rest == 'ledger:' .. T then
    counts.ledger = counts.ledger + redis.call('XLEN', name)
  elseif string.sub(rest, 1, #T + 10) == 'delivery:' .. T .. ':' then
    counts.deliveries = counts.deliveries + 1
    redis.call('ZREM', P .. 'undelivered', string.sub(rest, 10))
  end
  for _, lane in ipairs(LANES) do
    -- Its jobs are gone, and left it: what is still there no record belongs to.
    if rest == 'q:' .. lane .. ':' .. T then
      redis.call('HINCRBY', P .. 'pace:' .. lane, 'ready', 0 - redis.call('ZCARD', name))
    end
  end
end

local function look(name)
  local rest = string.sub(name, #P + 1)
  local kind, id = string.match(rest, '^(%a+):(.*)$')
  if LAST[rest] then return end
  -- Where the tenant stands in a name, not anywhere: others' end users may be called like it.
  if id == T or string.sub(id or '', 1, #T + 1) == T .. ':' or OF_LANES[rest] then
    reckon(name, rest)
    take(name)
  elseif rest == 'guarded' then
    for _, member in ipairs(redis.call('SMEMBERS', name)) do
      if string.sub(member, 1, #T + 1) == T .. ' ' then found = found + redis.call('SREM', name, member) end
    end
  elseif MEMBERS[rest] then
    if redis.call(MEMBERS[rest], name, T) == 1 then found = found + 1 end
  elseif kind == 'job' then
    if is_ours(name) then
      found = found + 1
      jobs[#jobs + 1] = id
    end
  elseif kind == 'doc' then
    if is_ours(name) then
      counts.documents = counts.documents + 1
      take(name)
    end
  elseif kind == 'search' then
    if is_ours(name) then take(name) end
  elseif kind == 'key' then
    if is_ours(name) then
      counts.keys = counts.keys + 1
      take(name)
    end
  elseif kind == 'gone' then
    if value('GET', name) == T then take(name) end
  elseif kind == 'books' or kind == 'rate' then
    if is_key(id) then take(name) end
  elseif kind == 'idem' then
    -- The answer to whoever created the tenant, or one of its keys.
    local packed = value('HGET', name, 'reply')
    local reply = packed and cmsgpack.unpack(packed)
    if reply and (reply[2] == T or (reply[2] and is_key(reply[2]))) then take(name) end
  end
end

for _, name in ipairs(a.names) do look(name) end
for what, count in pairs(counts) do erased(T, what, count) end
return {found, jobs}
