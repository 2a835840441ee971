-- extend: reserves more output tokens for a call that is under way, a slice at a time. Safe to repeat: it names the
-- bound that is to be raised.
-- KEYS  1 job record   2 the job's calls under way
-- ARGV  prefix, job, worker, lease, call, seen (output tokens so far), bound (output tokens reserved by now)
-- Returns {'ok', output tokens reserved now}   {'lost'} the lease is lost, or the call is not under way
--         {'held', why} what is left is reserved for other calls   {'spent', why} at a hard limit
--@include base
--@include limits
--@include books
local row = redis.call('HMGET', KEYS[1], 'owner', 'lease', 'status', 'tenant', 'key', 'user', 'prompt', 'type')
local open = redis.call('HGET', KEYS[2], a.call)
if row[1] ~= a.worker or row[2] ~= tostring(a.lease) or (row[3] ~= 'processing' and row[3] ~= 'cancelling') or not open then
  return {'lost'}
end
local hold = cjson.decode(open)
redis.call('HSET', KEYS[2], a.call .. ':o', int(a.seen))
local bound = tonumber(hold.b)
if bound > a.bound then return {'ok', hold.b} end
learn_output(row[4], row[8] or '', hold.m, a.seen, false)
local wish = math.max(bound, a.seen) + SLICE
local more = wish - bound
local blocked = nil
for _, scope in ipairs(scopes_of(tenant_policy(row[4]), row[4], row[5], row[6], row[7])) do
  if scope.policy and scope.policy.b then
    local book = book_of(scope.id)
    -- A scope that got its budget while this call was under way holds nothing of it: what is held counts all the same.
    for _, budget in ipairs(scope.policy.b) do
      for _, unit in ipairs(UNITS) do
        local limit = budget[unit[2]]
        if limit then
          local used, reserved = book[budget.p .. unit[3]], book[unit[4]]
          local left = limit - used - reserved
          local fits = left
          if unit[1] == 'usd' then fits = hold.pi and (hold.po or 0) > 0 and math.floor(left * 1000 / hold.po) or more end
          if fits < more then
            more = fits
            if more < 1 then
              local mine = unit[1] == 'usd' and (hold.hn or 0) or (hold.ht or 0)
              -- Others have reserved what they may not need.
              local why = refusal(scope, budget, unit, book)
              why.revision = redis.call('HGET', P .. 'tenant:' .. row[4], 'revision') or '0'
              blocked = {reserved > mine and 'held' or 'spent', cjson.encode(why)}
              break
            end
          end
        end
      end
      if blocked then break end
    end
  end
  if blocked then break end
end
if blocked then return blocked end
more = math.floor(more)
reserve(hold, more, nano_of(hold, hold.i, bound + more) - nano_of(hold, hold.i, bound))
hold.b = int(bound + more)
redis.call('HSET', KEYS[2], a.call, cjson.encode(hold))
return {'ok', hold.b}
