-- outcomes: what a job's end tells of its prompt's version, and of the arm of an experiment. Needs base and limits.
-- docs/adr/0015-prompts.md.

local LONGEST_MS = 400 * 86400000 -- sums that nothing is added to for so long go

-- Adds an observation to a metric of an arm: its sums, and those over units that the variance needs. `unit` is a mark of
-- what was assigned; nil where each job is a unit of its own and is observed once.
local function observe(exp, arm, unit, metric, value)
  local key, field = P .. 'arms:' .. exp, arm .. '|' .. metric .. '|'
  local count, sum = 0, 0
  if unit then
    local units, own = P .. 'armunits:' .. exp, field .. unit
    local known = redis.call('HGET', units, own)
    if known then
      count, sum = string.match(known, '^(%S+) (%S+)$')
      count, sum = tonumber(count), tonumber(sum)
    end
    redis.call('HSET', units, own, string.format('%.0f %.17g', count + 1, sum + value))
    if redis.call('PTTL', units) == -1 then redis.call('PEXPIRE', units, LONGEST_MS) end
  end
  local function add(name, amount)
    if amount ~= 0 then redis.call('HINCRBYFLOAT', key, field .. name, string.format('%.17g', amount)) end
  end
  add('n', 1)
  if redis.call('PTTL', key) == -1 then redis.call('PEXPIRE', key, LONGEST_MS) end
  add('x', value)
  if count == 0 then add('u', 1) end
  add('ss', 2 * sum * value + value * value)
  add('sn', (sum + value) * (count + 1) - sum * count)
  add('nn', 2 * count + 1)
end

-- How a user is named in an experiment's sums: not by name.
local function unit_mark(tenant, user)
  if not user or user == '' then return nil end
  return string.sub(redis.sha1hex(tenant .. '\0' .. user), 1, 20)
end

-- A job was admitted into an arm: units are counted once.
local function assigned(record, tenant)
  if not record.exp or record.exp == '' then return end
  local unit = unit_mark(tenant, record.exp_unit ~= '' and record.exp_unit or nil)
  for _, kind in ipairs({'arms:', 'armunits:'}) do redis.call('PEXPIRE', P .. kind .. record.exp, LONGEST_MS) end
  if unit and redis.call('HSETNX', P .. 'armunits:' .. record.exp, 'assigned|' .. unit, record.arm) == 0 then return end
  redis.call('HINCRBY', P .. 'arms:' .. record.exp, record.arm .. '|assigned', 1)
end

local OUTCOME = {'arm', 'exp_unit', 'started_ms', 'tok_in', 'tok_out', 'tok_embed', 'cost_nano', 'tok_unpriced', 'told_tok',
  'told_nano', 'told_unpriced', 'base_tok'}

-- The key of the day's figures of a prompt, and the start of its version's fields.
local function figures_of(tenant, prompt)
  local name, version = string.match(prompt, '^(.*)@(%d+)$')
  redis.call('ZADD', P .. 'pstatdays:' .. tenant .. ':' .. name, WINDOW.d, WINDOW.d)
  return P .. 'pstats:' .. tenant .. ':' .. name .. ':' .. WINDOW.d, version .. '|'
end

-- A job with a prompt has ended as complete or failed. What an earlier run of it has told is not told again.
local function outcome(key, row, status, data)
  -- What a limit kept from beginning says nothing of its prompt.
  if status == 'failed' and redis.call('HGET', key, 'not_begun') then return end
  local values = redis.call('HMGET', key, unpack(OUTCOME))
  local job = {}
  for place, name in ipairs(OUTCOME) do job[name] = values[place] end
  local function since(name, told)
    return tonumber(job[name] or '0') - tonumber(job[told] or '0')
  end
  local total = tonumber(job.tok_in or '0') + tonumber(job.tok_out or '0') + tonumber(job.tok_embed or '0')
  local tokens, nano, unpriced = total - tonumber(job.told_tok or job.base_tok or '0'), since('cost_nano', 'told_nano'),
    since('tok_unpriced', 'told_unpriced')
  redis.call('HSET', key, 'told_tok', int(total), 'told_nano', job.cost_nano or '0', 'told_unpriced', job.tok_unpriced or '0')
  local figures, field = figures_of(row.tenant, row.prompt)
  redis.call('HINCRBY', figures, field .. 'n', 1)
  if status == 'failed' then redis.call('HINCRBY', figures, field .. 'f', 1) end
  if tokens ~= 0 then redis.call('HINCRBY', figures, field .. 't', int(tokens)) end
  if nano ~= 0 then redis.call('HINCRBY', figures, field .. 'c', int(nano)) end
  if unpriced ~= 0 then redis.call('HINCRBY', figures, field .. 'u', int(unpriced)) end
  local ms = job.started_ms and status == 'complete' and math.max(1, now - tonumber(job.started_ms))
  -- Buckets grow by a fourth of a doubling: a percentile is right within a tenth.
  if ms then redis.call('HINCRBY', figures, field .. 'b' .. int(math.floor(4 * math.log(ms) / math.log(2))), 1) end
  -- A job that is its own unit counts once, as it ended first.
  if not row.exp or (not job.exp_unit and job.told_tok) then return end
  local unit = unit_mark(row.tenant, job.exp_unit)
  local function tell(metric, value) observe(row.exp, job.arm, unit, metric, value) end
  tell('success', status == 'complete' and 1 or 0)
  if status == 'complete' then
    tell('schemaValid', 1)
  elseif string.match(data, '"code":"([%a_]+)"') == 'bad_output' then
    tell('schemaValid', 0)
  end
  tell('tokens', tokens)
  if unpriced == 0 and job.cost_nano then tell('costUsd', nano / 1000000000) end
  if ms then tell('latencyMs', ms) end
end
