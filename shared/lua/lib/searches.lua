-- searches: the log of searches. Its indexes are sorted by id, and so by time. Needs base; a.tenant, a.kind (what their
-- ids begin with).

local SEARCHES = P .. 'searches:' .. a.tenant

-- What ids of searches begin with that were made at this time (ms).
local function id_at(ms)
  local mark, rest = '', ms
  for _ = 1, 10 do
    local digit = rest % 32
    mark = string.sub(CROCKFORD, digit + 1, digit + 1) .. mark
    rest = (rest - digit) / 32
  end
  return a.kind .. mark
end

-- Ids in an index of searches before `bound`, the oldest first.
local function older(index, bound, most)
  return redis.call('ZRANGEBYLEX', index, '-', '(' .. bound, 'LIMIT', 0, most)
end

-- Puts a search into an index, which lives at least `life_ms` from now.
local function enter(index, id, life_ms)
  redis.call('ZADD', index, 0, id)
  if redis.call('PTTL', index) < life_ms then redis.call('PEXPIRE', index, int(life_ms)) end
end

-- Removes a search from wherever it is; its job's id, false when there is no such search of this tenant.
local function forget(id)
  redis.call('ZREM', SEARCHES, id)
  local key = P .. 'search:' .. id
  local row = redis.call('HMGET', key, 'tenant', 'record', 'mark', 'docs', 'job')
  if row[1] ~= a.tenant or not row[2] then return false end
  if row[3] then redis.call('ZREM', P .. 'searchuser:' .. a.tenant .. ':' .. row[3], id) end
  for document in string.gmatch(row[4], '%S+') do
    redis.call('ZREM', P .. 'searchdoc:' .. a.tenant .. ':' .. document, id)
  end
  redis.call('UNLINK', key)
  return row[5]
end
