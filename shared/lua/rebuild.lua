-- rebuild: writes counters, what is reserved, usage rows and jobs' figures anew: sums of the ledger up to an entry, to
-- which this script adds what came after it, so that nothing is lost while calls go on being booked. All or nothing.
-- KEYS  1 the tenant's ledger
-- ARGV  prefix, tenant, after (id of the entry up to which the sums go), d, m (the windows of theirs),
--       scopes (list of {id, dt, dn, mt, mn, tt, tn}), rows (list of {day, model, type, prompt, user, key, then as jobs}),
--       jobs (list of {job, input, output, embedding, wasted tokens, nano-USD, tokens without a price, estimated calls})
-- Returns 'ok'   'turned' a window turned meanwhile, and nothing was written
--@include base
--@include queue
--@include limits
--@include holds
if WINDOW.d ~= a.d or WINDOW.m ~= a.m then return 'turned' end
local scopes, rows, jobs = {}, {}, {}
for _, scope in ipairs(a.scopes) do scopes[scope[1]] = scope end
for _, row in ipairs(a.rows) do
  row.field = cjson.encode({row[2], row[3], row[4], row[5], row[6]})
  rows[row[1] .. ' ' .. row.field] = row
end
for _, job in ipairs(a.jobs) do jobs[job[1]] = job end

local function add(sums, from, amounts)
  if not sums then return end
  for place, amount in ipairs(amounts) do sums[from + place] = sums[from + place] + amount end
end

for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '(' .. a.after, '+')) do
  local e = {}
  for i = 1, #entry[2], 2 do e[entry[2][i]] = entry[2][i + 1] end
  local tokens, nano = tonumber(e.i) + tonumber(e.o) + tonumber(e.e), tonumber(e.n)
  local estimates = (e.z == '1' and -1 or 0) + (e.x == '1' and 1 or 0)
  local amounts = {tonumber(e.i), tonumber(e.o), tonumber(e.e), tonumber(e.w), nano or 0, nano and 0 or tokens, estimates}
  local window = windows(tonumber(e.a))
  local sums = {0, 0, 0, 0, tokens, nano or 0}
  if window.d == WINDOW.d then sums[1], sums[2] = tokens, nano or 0 end
  if window.m == WINDOW.m then sums[3], sums[4] = tokens, nano or 0 end
  for _, scope in ipairs(scopes_of(nil, a.tenant, e.k, e.u, e.p)) do add(scopes[scope.id], 1, sums) end
  add(rows[window.d .. ' ' .. cjson.encode({e.m, e.ty, e.p, e.u, e.k})], 6, amounts)
  add(jobs[e.j], 1, amounts)
end

local held = #a.scopes > 0 and held_now() or {}
for id, sums in pairs(scopes) do
  local key, sum = P .. 'books:' .. id, held[id] or {0, 0}
  local any = sum[1] ~= 0 or sum[2] ~= 0 or redis.call('EXISTS', key) == 1
  for place = 2, 7 do any = any or sums[place] ~= 0 end
  if any then
    redis.call('HSET', key, 'd', WINDOW.d, 'm', WINDOW.m, 'dt', int(sums[2]), 'dn', int(sums[3]), 'mt', int(sums[4]),
      'mn', int(sums[5]), 'tt', int(sums[6]), 'tn', int(sums[7]), 'ht', int(sum[1]), 'hn', int(sum[2]))
  end
end
for _, row in pairs(rows) do
  local key = P .. 'usage:' .. a.tenant .. ':' .. row[1]
  -- What was reused stands in no ledger.
  local reused = tonumber(string.match(redis.call('HGET', key, row.field) or '', '^%S+ %S+ %S+ (%d+)') or '0')
  local value = {int(row[7]), int(row[8]), int(row[9]), int(reused), int(row[10]), int(row[11]), int(row[12]), int(row[13])}
  local text = table.concat(value, ' ')
  if text == '0 0 0 0 0 0 0 0' then
    redis.call('HDEL', key, row.field)
  else
    redis.call('HSET', key, row.field, text)
    redis.call('ZADD', P .. 'usagedays:' .. a.tenant, row[1], row[1])
  end
end
for id, job in pairs(jobs) do
  local key = P .. 'job:' .. id
  if redis.call('HGET', key, 'tenant') == a.tenant then
    redis.call('HSET', key, 'tok_in', int(job[2]), 'tok_out', int(job[3]), 'tok_embed', int(job[4]),
      'tok_wasted', int(job[5]), 'tok_unpriced', int(job[7]), 'estimated', int(job[8]))
    -- Absent: no call of it had a price.
    if job[6] ~= 0 or job[7] ~= job[2] + job[3] + job[4] then
      redis.call('HSET', key, 'cost_nano', int(job[6]))
    else
      redis.call('HDEL', key, 'cost_nano')
    end
  end
end
budget_freed(a.tenant)
return 'ok'
