-- search_feedback: what somebody says of a search, or of a chunk that it considered.
-- KEYS  1 record of the search   2 idempotency key (any name when none was sent)
-- ARGV  prefix, tenant, rev (of the record in which the caller has found the chunk), good (bool), chunk (absent: of the
--       whole), unit (hash of who says it and of what, optional), idem_body
-- Returns {'ok', now ms, '0' or '1' replayed, helpful, not helpful, votes (JSON)}   {'none'} no such search of this tenant
--         {'again'} something of it was erased meanwhile   {'mismatch'} the idempotency key stands for another body
--@include base
local stored = replay(KEYS[2])
if stored then
  if stored[1] == 'ok' then stored[3] = '1' end
  return stored
end
local row = redis.call('HMGET', KEYS[1], 'tenant', 'rev', 'votes', 'record')
if row[1] ~= a.tenant or not row[4] then return {'none'} end
if row[2] ~= a.rev then return {'again'} end
local votes = cjson.decode(row[3] or '{}')

local function count(is_good, by)
  if a.chunk then
    local of = votes[a.chunk] or {r = 0, n = 0}
    local side = is_good and 'r' or 'n'
    of[side] = math.max(0, of[side] + by)
    votes[a.chunk] = of
  else
    redis.call('HINCRBY', KEYS[1], is_good and 'helpful' or 'unhelpful', by)
  end
end

if a.unit then
  local said = redis.call('HGET', KEYS[1], 'by:' .. a.unit)
  if said then count(said == '1', -1) end
  redis.call('HSET', KEYS[1], 'by:' .. a.unit, a.good and '1' or '0')
end
count(a.good, 1)
local text = cjson.encode(votes)
redis.call('HSET', KEYS[1], 'votes', text)
local counts = redis.call('HMGET', KEYS[1], 'helpful', 'unhelpful')
local reply = {'ok', NOW, '0', counts[1] or '0', counts[2] or '0', text}
remember(KEYS[2], reply)
return reply
