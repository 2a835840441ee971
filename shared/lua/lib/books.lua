-- books: holds, counters and the ledger. A call is reserved, perhaps extended, and settled once; what is written of a
-- settled call (ledger, counters, usage row, the job's own figures) is written in one step. docs/adr/0013-books.md.

local KNOWN_CALLS = 20 -- until then the size of calls of a kind counts as unknown
local ALL_KNOWN_CALLS = 60 -- until then some may be under way that began as unknown

-- Room for each token that is reserved. A crowd of calls of unknown size would else spend the whole budget before one of
-- them is complete; of known size some still become longer than nine of ten.
local function care_of(calls)
  if calls < KNOWN_CALLS then return 4 end
  return calls < ALL_KNOWN_CALLS and 2 or 1.125
end

local FIRST_OUTPUT = 128 -- output tokens that are reserved for a call of a kind never seen
local SLICE = 64 -- and by how many more that is extended

-- Nano-USD of these tokens at pico-USD per token; 0 without a price.
local function nano_of(hold, input, output)
  if not hold.pi then return 0 end
  return math.floor((input * hold.pi + output * (hold.po or 0)) / 1000 + 0.5)
end

-- Tokens of output that `nano` pays for, beside `input`.
local function output_for(hold, input, nano)
  local pico = nano * 1000 - input * hold.pi
  if (hold.po or 0) <= 0 then return pico >= 0 and math.huge or -1 end
  return math.floor(pico / hold.po)
end

-- How many output tokens the hard limits of these scopes let a call have that reads `hold.i` and wishes for `wish`:
-- a number, or nil and {'spent' | 'held' | 'unpriced', why}: at the hard limit, only behind what others have reserved, or
-- a limit in money and no price. `care` is how much room there must be for each token that is reserved: calls that are
-- under way may become longer.
local function room(scopes, hold, wish, care)
  local granted = wish
  for _, hard in ipairs(hard_limits(scopes)) do
    if hard.is_money and not hold.pi then return nil, {'unpriced', refusal(hard)} end
    local left = hard.limit - hard.used
    local least, need = hold.i + (hold.e and 0 or 1), hold.i + wish
    if hard.is_money then least, need = nano_of(hold, hold.i, hold.e and 0 or 1), nano_of(hold, hold.i, wish) end
    least = math.max(1, least)
    if left < least then return nil, {'spent', refusal(hard, least)} end
    if hard.reserved > 0 then
      local whole = hard.reserved + need
      if not hold.e then whole = hard.reserved * care + math.max(need, need * care / 2) end
      if whole > left then return nil, {'held', refusal(hard)} end
    elseif need > left then
      granted = math.min(granted, hard.is_money and output_for(hold, hold.i, left) or left - hold.i)
    end
  end
  return math.max(granted, hold.e and 0 or 1), nil
end

-- Changes what is reserved for a call by so many tokens and nano-USD, in all scopes where it is.
local function reserve(hold, tokens, nano)
  for _, id in ipairs(hold.h or {}) do
    if tokens ~= 0 then redis.call('HINCRBY', P .. 'books:' .. id, 'ht', int(tokens)) end
    if nano ~= 0 then redis.call('HINCRBY', P .. 'books:' .. id, 'hn', int(nano)) end
  end
  hold.ht, hold.hn = (hold.ht or 0) + tokens, (hold.hn or 0) + nano
end

-- Adds to a scope's counters, in the present windows.
local function count(id, tokens, nano)
  local key = P .. 'books:' .. id
  local window = redis.call('HMGET', key, 'd', 'm')
  if window[1] ~= WINDOW.d then redis.call('HSET', key, 'd', WINDOW.d, 'dt', 0, 'dn', 0) end
  if window[2] ~= WINDOW.m then redis.call('HSET', key, 'm', WINDOW.m, 'mt', 0, 'mn', 0) end
  local tokens_text, nano_text = int(tokens), int(nano)
  for _, period in ipairs({'d', 'm', 't'}) do
    if tokens ~= 0 then redis.call('HINCRBY', key, period .. 't', tokens_text) end
    if nano ~= 0 then redis.call('HINCRBY', key, period .. 'n', nano_text) end
  end
end

-- Notes soft limits that were crossed for the first time in their window. Returns those.
local function tell_soft(scope)
  if not (scope.policy and scope.policy.b) then return {} end
  local book, fresh = book_of(scope.id), {}
  for _, crossed in ipairs(soft_crossed(scope, book)) do
    if not string.find(',' .. book.ws .. ',', ',' .. crossed.mark .. ',', 1, true) then fresh[#fresh + 1] = crossed end
  end
  if #fresh > 0 then
    local marks = {}
    -- Marks of windows that are over are dropped.
    for mark in string.gmatch(book.ws, '[^,]+') do
      local period, window = string.match(mark, '^(%a)(%d*)')
      if (WINDOW[period] or '') == window then marks[#marks + 1] = mark end
    end
    for _, crossed in ipairs(fresh) do marks[#marks + 1] = crossed.mark end
    redis.call('HSET', P .. 'books:' .. scope.id, 'ws', table.concat(marks, ','))
  end
  return fresh
end

local USAGE = {'i', 'o', 'e', 'r', 'w', 'n', 'q', 'x'}

-- Adds to the usage row of a job's calls of one model, today.
local function usage_row(job, model, amounts)
  local key = P .. 'usage:' .. job.tenant .. ':' .. WINDOW.d
  local field = usage_field(job, model)
  local known, sums, i = redis.call('HGET', key, field), {}, 0
  if known then
    for number in string.gmatch(known, '%S+') do
      i = i + 1
      sums[USAGE[i]] = tonumber(number)
    end
  else
    redis.call('ZADD', P .. 'usagedays:' .. job.tenant, WINDOW.d, WINDOW.d)
  end
  local row = {}
  for place, name in ipairs(USAGE) do row[place] = int((sums[name] or 0) + (amounts[name] or 0)) end
  redis.call('HSET', key, field, table.concat(row, ' '))
end

local ENDED = {complete = true, failed = true, cancelled = true, expired = true}
local WARNED = {} -- soft limits that this call of the script was the first to cross, for metrics

-- Writes a settled call everywhere. `job` is the record's table, `call` has id, step, model, price version and whether it
-- is an estimate or a correction; `i o e w` are tokens, `n` nano-USD or nil where no price is known.
local function book(job_id, key, job, call, i, o, e, w, n)
  local total = i + o + e
  redis.call('XADD', P .. 'ledger:' .. job.tenant, '*', 'a', NOW, 'c', call.id, 'j', job_id, 'k', job.key or '',
    'u', job.user or '', 'ty', job.type or '', 's', call.step or '', 'm', call.model or '', 'p', job.prompt or '',
    'i', int(i), 'o', int(o), 'e', int(e), 'w', int(w), 'n', n and int(n) or '', 'v', call.version or '',
    'x', call.estimated and '1' or '0', 'z', call.correction and '1' or '0')
  local estimates = call.correction and -1 or 0
  if call.estimated then estimates = estimates + 1 end
  usage_row(job, call.model, {i = i, o = o, e = e, w = w, n = n or 0, q = n and 0 or total, x = estimates})
  job.tok_in = redis.call('HINCRBY', key, 'tok_in', int(i))
  job.tok_out = redis.call('HINCRBY', key, 'tok_out', int(o))
  job.tok_embed = redis.call('HINCRBY', key, 'tok_embed', int(e))
  if w ~= 0 then redis.call('HINCRBY', key, 'tok_wasted', int(w)) end
  if n then redis.call('HINCRBY', key, 'cost_nano', int(n)) else redis.call('HINCRBY', key, 'tok_unpriced', int(total)) end
  if estimates ~= 0 then redis.call('HINCRBY', key, 'estimated', estimates) end
  local scopes = scopes_of(tenant_policy(job.tenant), job.tenant, job.key, job.user, job.prompt)
  for _, scope in ipairs(scopes) do count(scope.id, total, n or 0) end
  for _, scope in ipairs(scopes) do
    for _, crossed in ipairs(tell_soft(scope)) do
      WARNED[#WARNED + 1] = crossed
      local money = crossed.unit == 'usd'
      local function shown(value)
        if not value then return 'null' end
        return money and string.format('%.9f', value / 1000000000) or int(value)
      end
      -- A call that ends after its job is told to nobody there: the final event is the last.
      if not ENDED[redis.call('HGET', key, 'status')] then
        local data = '{"code":"budget_soft_limit","message":"A soft limit of the ' ..
          crossed.scope .. ' is crossed (' .. crossed.unit .. ', ' .. crossed.period .. ').","scope":"' .. crossed.scope ..
          '","period":"' .. crossed.period .. '","unit":"' .. crossed.unit .. '","used":' .. shown(crossed.used) ..
          ',"soft":' .. shown(crossed.soft) .. ',"hard":' .. shown(crossed.hard) .. '}'
        job.seq = emit(job_id, 'job.warning', data)
        if job.hook then hook(job_id, job.tenant, job.hook, job.seq, 'job.warning', data) end
      end
    end
  end
end

-- A call is over: what was reserved for it goes, and its rates are charged what it really used.
local function let_go(hold, used, tenant)
  reserve(hold, 0 - (hold.ht or 0), 0 - (hold.hn or 0))
  local more, refunded = used - (hold.g or 0), false
  for _, rate in ipairs(hold.r or {}) do
    local tat, each = tat_of(rate[1], 't', rate[2]), 60000000 / rate[2]
    if more > 0 then
      set_tat(rate[1], 't', math.max(tat, NOW_US) + more * each, rate[2])
    elseif more < 0 then
      -- What has flowed in since the call began is not given back: it was there for others. `rate[3]` is the arrival time
      -- that this call left behind it.
      local still = math.max(0, (tonumber(rate[3]) or tat) - NOW_US)
      local back = math.min(0 - more * each, still)
      if back > 0 then
        refunded = true
        set_tat(rate[1], 't', math.max(0, tat - back), rate[2])
      end
    end
  end
  if refunded then rate_refunded(tenant) end
end

-- How long the output of such calls usually is, and how many were seen: `<90th percentile> <calls>`; nil for a kind
-- never seen.
local function usual_output(tenant, kind, model)
  local known = redis.call('HGET', P .. 'outs:' .. tenant, kind .. '|' .. model)
  if not known then return nil, 0 end
  local size, calls = string.match(known, '^(%S+) (%d+)$')
  return tonumber(size), tonumber(calls)
end

local MOST_KINDS = 2000 -- of a tenant: names of models are the clients'

-- Up by nine parts when it was more, down by one when it was less (stochastic approximation; Robbins and Monro 1951).
-- The first are the largest so far, also of calls that are still under way (`is_over` false): the short ones are over
-- first, and would be taken for all.
local function learn_output(tenant, kind, model, output, is_over)
  local key, field = P .. 'outs:' .. tenant, kind .. '|' .. model
  local size, calls = usual_output(tenant, kind, model)
  if not size and redis.call('HLEN', key) >= MOST_KINDS then return end
  if calls < KNOWN_CALLS then
    size = math.max(size or 1, output)
  elseif not is_over then
    return
  else
    local step = math.max(2, size * 0.1)
    if output > size then size = math.min(output, size + 0.9 * step) else size = math.max(output, size - 0.1 * step) end
  end
  redis.call('HSET', key, field, string.format('%.2f %d', math.max(1, size), is_over and math.min(calls + 1, ALL_KNOWN_CALLS) or calls))
end
