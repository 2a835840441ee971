-- limits: who is counted and limited, how much is used, reserved and left, and rates. docs/adr/0013-books.md.

-- The windows that a time in ms lies in, UTC: names as the counters keep them, and when they turn, ms.
local function windows(at)
  local days = math.floor(at / 86400000)
  -- Days to a date and back: Hinnant, "chrono-compatible low-level date algorithms".
  local z = days + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local day = doy - math.floor((153 * mp + 2) / 5) + 1
  local month = mp < 10 and mp + 3 or mp - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  -- The first of the next month: at most 31 days on.
  local lengths = {31, (year % 4 == 0 and (year % 100 ~= 0 or year % 400 == 0)) and 29 or 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31}
  return {
    d = string.format('%04d%02d%02d', year, month, day), m = string.format('%04d%02d', year, month),
    turns = {d = (days + 1) * 86400000, m = (days + lengths[month] - day + 1) * 86400000}}
end
local WINDOW = windows(now)
local NOW_US = time[1] * 1000000 + time[2]

local function policy_of(text)
  if text and text ~= '' then return cjson.decode(text) end
  return nil
end

-- The limits of a key. Those of one that was revoked hold on for the jobs that came with it (lib/keys.lua keeps them).
local function key_policy(tenant, key)
  local row = redis.call('HMGET', P .. 'key:' .. key, 'policy', 'tenant')
  if row[1] or row[2] then return policy_of(row[1]) end
  return policy_of(redis.call('GET', P .. 'ended:' .. tenant .. ':' .. key))
end

-- The scopes of a job, each {kind, id, policy or nil}. Absent parts are false, nil or ''. `policy` is that of the tenant.
local function scopes_of(policy, tenant, key, user, prompt)
  local scopes = {{kind = 'tenant', id = tenant, policy = policy}}
  if key and key ~= '' then
    scopes[#scopes + 1] = {kind = 'key', id = key, policy = key_policy(tenant, key)}
  end
  if user and user ~= '' then
    scopes[#scopes + 1] = {kind = 'user', id = tenant .. ':u:' .. user, policy = policy and policy.u}
  end
  if prompt and prompt ~= '' then
    local by = policy and policy.pr or {}
    local name = string.match(prompt, '^(.*)@%d+$')
    if name then scopes[#scopes + 1] = {kind = 'prompt', id = tenant .. ':p:' .. name, policy = by[name]} end
    scopes[#scopes + 1] = {kind = 'prompt', id = tenant .. ':p:' .. prompt, policy = by[prompt]}
  end
  return scopes
end

local function tenant_policy(tenant)
  return policy_of(redis.call('HGET', P .. 'tenant:' .. tenant, 'policy'))
end

local BOOK = {'d', 'm', 'dt', 'mt', 'tt', 'dn', 'mn', 'tn', 'ht', 'hn', 'ws'}

-- A scope's counters in the present windows: dt mt tt dn mn tn ht hn as numbers, ws as text.
local function book_of(id)
  local row, book = redis.call('HMGET', P .. 'books:' .. id, unpack(BOOK)), {}
  for i = 3, 10 do book[BOOK[i]] = tonumber(row[i] or '0') end
  if row[1] ~= WINDOW.d then book.dt, book.dn = 0, 0 end
  if row[2] ~= WINDOW.m then book.mt, book.mn = 0, 0 end
  book.ws = row[11] or ''
  return book
end

-- What is checked of a budget: {unit, limit name in the policy, suffix of the counter, suffix of what is reserved}.
local UNITS = {{'tokens', 'ht', 't', 'ht', 'st'}, {'usd', 'hn', 'n', 'hn', 'sn'}}
local PERIODS = {d = 'day', m = 'month', t = 'total'}

-- Each hard limit of these scopes: {scope, budget, unit, is_money, limit, used, reserved}.
local function hard_limits(scopes)
  local found = {}
  for _, scope in ipairs(scopes) do
    local budgets = scope.policy and scope.policy.b
    local book = budgets and book_of(scope.id)
    for _, budget in ipairs(budgets or {}) do
      for _, unit in ipairs(UNITS) do
        local limit = budget[unit[2]]
        if limit then
          found[#found + 1] = {
            scope = scope, period = budget.p, unit = unit[1], is_money = unit[1] == 'usd', limit = limit,
            used = book[budget.p .. unit[3]], reserved = book[unit[4]]}
        end
      end
    end
  end
  return found
end

-- Why something does not fit a hard limit: for people, in JSON. Money is in nano-USD here. What needs more than the whole
-- limit (`requested`) never fits, whichever window: it frees when the limit is raised.
local function refusal(hard, requested)
  local never = requested and requested > hard.limit or hard.limit <= 0
  return {
    scope = hard.scope.kind, id = hard.scope.id, period = PERIODS[hard.period], unit = hard.unit, used = hard.used,
    reserved = hard.reserved, limit = hard.limit, remaining = math.max(0, hard.limit - hard.used - hard.reserved),
    requested = never and requested or nil, freesAt = not never and WINDOW.turns[hard.period] or nil}
end

-- The first hard limit of these scopes that is reached, or nil.
local function exhausted(scopes)
  for _, hard in ipairs(hard_limits(scopes)) do
    if hard.used >= hard.limit then return refusal(hard) end
  end
  return nil
end

-- The field of a job's calls of one model in a day's usage.
local function usage_field(job, model)
  return cjson.encode({model or '', job.type or '', job.prompt or '', job.user or '', job.key or ''})
end

-- GCRA with cost (ITU-T I.371; `tat` is the theoretical arrival time). Returns how long to wait in µs (0: it may go now)
-- and the new `tat`. What is larger than the burst may go when the bucket is full, and is paid for afterwards.
local function gcra(tat, per_minute, burst, cost)
  local each = 60000000 / per_minute
  local from = math.max(tat, NOW_US)
  local after, most = from + cost * each, burst * each
  if cost > burst then return math.max(0, tat - NOW_US), after end
  -- Half a µs: what is stored is rounded.
  return math.max(0, after - NOW_US - most - 0.5), after
end

-- The arrival time at `rate` per minute. It is kept with the rate that it was reckoned at: when that has changed, what
-- was used stays the same, not the time.
local function tat_of(id, field, rate)
  local tat, at = string.match(redis.call('HGET', P .. 'rate:' .. id, field) or '', '^(%d+) (%d+)$')
  if not tat then return 0 end
  tat, at = tonumber(tat), tonumber(at)
  if at ~= rate and tat > NOW_US then tat = NOW_US + (tat - NOW_US) * at / rate end
  return tat
end

local function set_tat(id, field, tat, rate)
  local key = P .. 'rate:' .. id
  redis.call('HSET', key, field, int(tat) .. ' ' .. int(rate))
  -- A full bucket needs no memory; both fields are full a minute's burst after the later of them.
  local left = math.ceil((tat - NOW_US) / 1000) + 60000
  if redis.call('PTTL', key) < left then redis.call('PEXPIRE', key, int(math.max(left, 60000))) end
end

local RATES = {r = {'requests', 'rpm', 'rb'}, t = {'tokens', 'tpm', 'tb'}}

-- A call of more tokens than a burst goes when the bucket is full. Until then it keeps smaller ones from taking what flows
-- in: it would wait for ever.
local function let_fill(slow)
  if slow.unit == 'tokens' and slow.requested > slow.burst then
    redis.call('HSET', P .. 'rate:' .. slow.id, 'b', int(NOW_US + slow.waitUs + 1000000))
  end
end

-- How long what is no larger than the burst must wait for one that is, µs.
local function filling(id)
  return math.max(0, tonumber(redis.call('HGET', P .. 'rate:' .. id, 'b') or '0') - NOW_US)
end

-- Looks whether `cost` requests ('r') or tokens ('t') may go in all these scopes now. Returns nil, or the one that makes
-- it wait longest (`waitUs`); and what to write when all else may go too.
local function rate_check(scopes, field, cost)
  local names, worst, writes = RATES[field], nil, {}
  for _, scope in ipairs(scopes) do
    local rate = scope.policy and scope.policy[names[2]]
    if rate then
      local tat = tat_of(scope.id, field, rate)
      local burst = scope.policy[names[3]]
      local wait, after = gcra(tat, rate, burst, cost)
      local behind = field == 't' and cost <= burst and tat > 0 and filling(scope.id) or 0
      wait = math.max(wait, behind)
      writes[#writes + 1] = {scope.id, field, after, rate, cost > burst}
      if wait > 0 and (not worst or wait > worst.waitUs) then
        local each = 60000000 / rate
        local used = math.ceil(math.max(0, tat - NOW_US) / each)
        worst = {
          scope = scope.kind, id = scope.id, unit = names[1], limit = rate, burst = burst, used = used,
          reserved = 0, remaining = math.max(0, burst - used), waitUs = wait, requested = cost, behind = behind > 0 or nil,
          freesAt = now + math.ceil(wait / 1000)}
      end
    end
  end
  return worst, writes
end

local function rate_write(writes)
  for _, write in ipairs(writes) do
    set_tat(write[1], write[2], write[3], write[4])
    if write[5] then redis.call('HDEL', P .. 'rate:' .. write[1], 'b') end
  end
end

-- Gives a request back that spent nothing.
local function refund_request(scopes)
  for _, scope in ipairs(scopes) do
    local rate = scope.policy and scope.policy.rpm
    if rate then
      local tat = tat_of(scope.id, 'r', rate)
      if tat > NOW_US then set_tat(scope.id, 'r', math.max(NOW_US, tat - 60000000 / rate), rate) end
    end
  end
end

-- How a rate stands, of the scope that has least left: {limit, burst, remaining, µs until the bucket is full, scope kind},
-- or nil without such a limit.
local function rate_standing(scopes, field)
  local names, least = RATES[field], nil
  for _, scope in ipairs(scopes) do
    local rate = scope.policy and scope.policy[names[2]]
    if rate then
      local each = 60000000 / rate
      local debt = math.max(0, tat_of(scope.id, field, rate) - NOW_US)
      local left = math.max(0, math.floor(scope.policy[names[3]] - debt / each + 0.000001))
      if not least or left < least.remaining then
        least = {
          scope = scope.kind, limit = rate, burst = scope.policy[names[3]], remaining = left, resetUs = math.ceil(debt)}
      end
    end
  end
  return least
end

-- Soft limits that are crossed: {scope, id, period, unit, used, soft, hard} each.
local function soft_crossed(scope, book)
  local crossed = {}
  for _, budget in ipairs(scope.policy and scope.policy.b or {}) do
    for _, unit in ipairs(UNITS) do
      local soft, used = budget[unit[5]], book[budget.p .. unit[3]]
      if soft and used >= soft then
        crossed[#crossed + 1] = {
          scope = scope.kind, id = scope.id, period = PERIODS[budget.p], unit = unit[1], used = used, soft = soft,
          hard = budget[unit[2]], mark = budget.p .. (WINDOW[budget.p] or '') .. unit[3]}
      end
    end
  end
  return crossed
end

-- Whether a job may come in now, as far as rates and budgets go: nil, or {'rate' | 'budget' | 'unpriced', why}. What is written is
-- written only when it may. `tokens` and `patience_ms`: an interactive job that would wait longer for its tokens is
-- refused; likewise one whose model has no price (`unpriced`) where a hard limit is in money.
local function admit_limits(scopes, tokens, patience_ms, unpriced)
  local any = false
  for _, scope in ipairs(scopes) do any = any or scope.policy end
  if not any then return nil end
  for _, scope in ipairs(unpriced and scopes or {}) do
    for _, budget in ipairs(scope.policy and scope.policy.b or {}) do
      if budget.hn then return {'unpriced', scope.kind} end
    end
  end
  local spent = exhausted(scopes)
  if spent then return {'budget', cjson.encode(spent)} end
  local slow, writes = rate_check(scopes, 'r', 1)
  if slow then return {'rate', cjson.encode(slow)} end
  if patience_ms then
    slow = rate_check(scopes, 't', tokens)
    if slow and slow.waitUs > patience_ms * 1000 then return {'rate', cjson.encode(slow)} end
  end
  rate_write(writes)
  return nil
end

-- How the scopes stand, in JSON, for the headers of an answer; '' without limits.
local function standing(scopes)
  local told, any = {warnings = {}}, false
  for _, scope in ipairs(scopes) do
    if scope.policy then
      any = true
      if scope.policy.b then
        for _, crossed in ipairs(soft_crossed(scope, book_of(scope.id))) do told.warnings[#told.warnings + 1] = crossed end
      end
    end
  end
  if not any then return '' end
  told.requests, told.tokens = rate_standing(scopes, 'r'), rate_standing(scopes, 't')
  if #told.warnings == 0 then told.warnings = nil end
  return cjson.encode(told)
end
