-- extend: reserves more for a call that is under way: output tokens, a slice at a time, or texts to embed. Safe to
-- repeat: it names the bound that is to be raised.
-- KEYS  1 job record   2 the job's calls under way
-- ARGV  prefix, job, worker, lease, call, seen (output tokens so far), bound (output tokens reserved by now; of a call
--       that embeds, input tokens), embeds (tokens of more texts; absent for a completion)
-- Returns {'ok', tokens reserved now, as `bound`}   {'lost'} the lease is lost, or the call is not under way
--         {'held', why} what is left is reserved for other calls   {'spent', why} at a hard limit
--@include base
--@include limits
--@include hooks
--@include books
local row = redis.call('HMGET', KEYS[1], 'owner', 'lease', 'status', 'tenant', 'key', 'user', 'prompt', 'type')
local open = redis.call('HGET', KEYS[2], a.call)
if row[1] ~= a.worker or row[2] ~= tostring(a.lease) or (row[3] ~= 'processing' and row[3] ~= 'cancelling') or not open then
  return {'lost'}
end
local hold = cjson.decode(open)
local bound = a.embeds and hold.i or tonumber(hold.b)
if bound > a.bound then return {'ok', int(bound)} end
local more, least = a.embeds, a.embeds
if not a.embeds then
  redis.call('HSET', KEYS[2], a.call .. ':o', int(a.seen))
  learn_output(row[4], row[8] or '', hold.m, a.seen, false)
  more, least = math.max(bound, a.seen) + SLICE - bound, 1
end
local each = a.embeds and hold.pi or hold.po -- pico-USD
-- A scope that got its budget while this call was under way holds nothing of it: what is held counts all the same.
for _, hard in ipairs(hard_limits(scopes_of(tenant_policy(row[4]), row[4], row[5], row[6], row[7]))) do
  local left = hard.limit - hard.used - hard.reserved
  if hard.is_money then left = (each or 0) > 0 and math.floor(left * 1000 / each) or more end
  if left < least then
    local mine = hard.is_money and (hold.hn or 0) or (hold.ht or 0)
    local ahead = hard.is_money and math.ceil(least * (each or 0) / 1000) or least
    -- Others have reserved what they may not need; alone with the whole limit, it is too long for it.
    local why = refusal(hard, mine + ahead)
    why.revision = redis.call('HGET', P .. 'tenant:' .. row[4], 'revision') or '0'
    return {hard.reserved > mine and mine + ahead <= hard.limit and 'held' or 'spent', cjson.encode(why)}
  end
  more = math.min(more, left)
end
more = math.floor(more)
if a.embeds then
  reserve(hold, more, nano_of(hold, hold.i + more, 0) - nano_of(hold, hold.i, 0))
  hold.i = hold.i + more
else
  reserve(hold, more, nano_of(hold, hold.i, bound + more) - nano_of(hold, hold.i, bound))
  hold.b = int(bound + more)
end
redis.call('HSET', KEYS[2], a.call, cjson.encode(hold))
return {'ok', int(bound + more)}
