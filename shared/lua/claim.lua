-- claim: gives a worker up to `count` jobs of its lanes, and notes it as asleep on the lanes that had too few.
-- KEYS  1 leases   2 jobs that may expire
-- ARGV  prefix, worker, lanes (list of {lane, at most}, the first lane first), count, lease_ms (length of the lease),
--       patience_ms (a later lane of which nothing was taken for so long goes first, with one job)
-- Returns {now ms, next due ms or -1, MessagePack list of jobs, each a list in the order of `Claimed`}
-- Jobs that are over a token rate are put off, or their tenant is.
-- Events job.queued (a delayed job has become due), job.expired, job.started, attempt.restarted
--@include base
--@include queue
--@include limits
--@include hooks
--@include outcomes
--@include job
local PAGE = 50
local MOST_EXPIRED = 200 -- that are cleared away, or put off, in one call
local out, leased, begun, expired = {}, {}, {}, 0
local LEASE_END = int(now + a.lease_ms)

-- Adds to `fields` what a job needs that was started before. Returns its attempt and event number, and its tokens.
local function start_again(job_id, key, seq, fields, prompt)
  local row = redis.call('HMGET', key, 'attempt', 'handed_back', 'text_seq', 'first_seq', 'started_ms', 'tok_in', 'tok_out',
    'tok_embed')
  local function set(name, value)
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  -- A deploy's hand-back is not an attempt of its own: the same attempt goes on.
  local handed_back = row[2] and row[2] ~= ''
  local attempt = tonumber(row[1]) + (handed_back and 0 or 1)
  local tokens = tonumber(row[6] or '0') + tonumber(row[7] or '0') + tonumber(row[8] or '0')
  emit_as(job_id, seq, 'job.started', '{"attempt":' .. text[attempt] .. ',"worker":"' .. a.worker .. '"' .. prompt .. '}')
  if not row[4] then
    set('first_seq', text[seq])
  elseif row[3] and row[3] ~= '' then
    seq = seq + 1
    emit_as(job_id, seq, 'attempt.restarted', '{"discardAfter":' .. row[4] .. '}')
    set('text_seq', '')
  end
  if not row[5] then
    set('started_ms', NOW)
    begun[#begun + 1] = job_id
  end
  if handed_back then set('handed_back', '') end
  set('error', '')
  set('told', '')
  set('tok_at_claim', int(tokens))
  return attempt, seq, tokens
end

local tats, key_policies = {}, {} -- of this call: arrival times with what it has let through, policies of keys

-- How long a job must wait for the token rates of its scopes, µs, and whether the whole tenant must; nil when it may
-- start. A look only: each of its calls is charged by itself.
local function rate_wait(policy, tenant, key, user, prompt, estimate)
  local limited = {}
  local function add(id, limits)
    if limits and limits.tpm then limited[#limited + 1] = {id, limits} end
  end
  add(tenant, policy)
  if key and key ~= '' then
    if key_policies[key] == nil then
      key_policies[key] = key_policy(tenant, key) or false
    end
    add(key, key_policies[key])
  end
  if user and user ~= '' then add(tenant .. ':u:' .. user, policy and policy.u) end
  if prompt and prompt ~= '' and policy and policy.pr then
    local name = string.match(prompt, '^(.*)@%d+$')
    if name then add(tenant .. ':p:' .. name, policy.pr[name]) end
    add(tenant .. ':p:' .. prompt, policy.pr[prompt])
  end
  if #limited == 0 then return nil end
  local longest, of_tenant, after = 0, false, {}
  for _, scope in ipairs(limited) do
    local id, rate, burst = scope[1], scope[2].tpm, scope[2].tb
    tats[id] = tats[id] or tat_of(id, 't', rate)
    -- A large job does not need all its tokens to begin.
    local wait, next_tat = gcra(tats[id], rate, burst, math.max(1, math.min(estimate, burst / 4)))
    after[id] = next_tat
    if wait > longest then longest, of_tenant = wait, id == tenant end
  end
  -- Those that are put off queue up behind each other, so that they do not all come back at once.
  if longest == 0 or not of_tenant then
    for id, tat in pairs(after) do tats[id] = tat end
  end
  if longest > 0 then return longest, of_tenant end
  return nil
end

-- Puts a job off until its rate has room.
local function slow_down(job_id, key, lane, tenant, wait_us)
  local due = int(now + math.ceil(wait_us / 1000))
  redis.call('HSET', key, 'wait_reason', 'rateLimit', 'wait_for', '', 'due_ms', due)
  put_off(job_id, lane, tenant, due)
end

-- Starts a job that was taken from its queue. Returns its estimated tokens, and whether it is to be run; or nil and how
-- long its tenant must wait, µs.
local function start(job_id, lane, weight, policy)
  local key = P .. 'job:' .. job_id
  local row = redis.call('HMGET', key, 'status', 'lease', 'est', 'expires_ms', 'seq', 'tenant', 'type', 'max_attempts',
    'spec', 'model', 'timeout_ms', 'token_budget', 'queued_ms', 'traceparent', 'run', 'key', 'user', 'prompt', 'pins',
    'tracestate', 'request', 'hook')
  local estimate = tonumber(row[3] or '0') or 0
  if row[1] ~= 'queued' then return estimate, false end
  if not (tonumber(row[2]) and tonumber(row[5]) and row[6] and tonumber(row[8] or '1') and
      (row[4] == '' or tonumber(row[4] or '0'))) then
    -- It cannot be read: it ends here, and nothing else suffers.
    redis.call('HSET', key, 'status', 'failed', 'finished_ms', NOW, 'error',
      '{"code":"internal","message":"The record of this job cannot be read.","retryable":false}')
    redis.call('ZADD', P .. 'retention', int(now + 604800000), job_id)
    return estimate, false
  end
  -- `expires_ms` is emptied at the first start of a run.
  if row[4] and row[4] ~= '' and tonumber(row[4]) <= now then
    expired = expired + 1
    finish(job_id, key, load(key), 'expired', '{}')
    return estimate, false
  end
  local wait_us, of_tenant = rate_wait(policy, row[6], row[16], row[17], row[18], estimate)
  if wait_us then
    if of_tenant then return nil, wait_us end
    expired = expired + 1
    slow_down(job_id, key, lane, row[6], wait_us)
    return estimate, false
  end
  local lease, seq, attempt, tokens = tonumber(row[2]) + 1, tonumber(row[5]) + 1, 1, 0
  local started = seq
  local fields = {'status', 'processing', 'owner', a.worker, 'lease', text[lease], 'claimed_ms', NOW, 'expires_ms', '',
    'weight', weight}
  -- Names are letters, digits and a few marks: nothing to escape.
  local prompt = row[18] and row[18] ~= '' and ',"prompt":"' .. row[18] .. '"' or ''
  if lease == 1 then
    emit_as(job_id, seq, 'job.started', '{"attempt":1,"worker":"' .. a.worker .. '"' .. prompt .. '}')
    redis.call('HSET', key, 'attempt', '1', 'seq', text[seq], 'first_seq', text[seq], 'started_ms', NOW, unpack(fields))
    begun[#begun + 1] = job_id
  else
    attempt, seq, tokens = start_again(job_id, key, seq, fields, prompt)
    redis.call('HSET', key, 'attempt', text[attempt], 'seq', text[seq], unpack(fields))
  end
  if row[22] then hook(job_id, row[6], row[22], started, 'job.started') end
  leased[#leased + 1] = LEASE_END
  leased[#leased + 1] = job_id
  out[#out + 1] = {job_id, row[6], row[7] or '', lane, lease, attempt, tonumber(row[8] or '1'), row[9] or '', row[10] or '',
    tonumber(row[11] or '0'), tonumber(row[12] or '0'), tokens, now, tonumber(row[13] or NOW), row[14] or '',
    tonumber(row[15] or '1'), row[16] or '', row[17] or '', row[18] or '', row[19] or '',
    row[20] or '', row[21] or ''}
  return estimate, true
end

-- Tenants of the lane from `offset` on, those at their limit parked: appended to `found`. Returns where to go on, or
-- nil at the end, and the counter up to which all tenants are known now.
local function load_tenants(lane, offset, found)
  local tenants = P .. 'q:' .. lane .. ':tenants'
  local page = redis.call('ZRANGE', tenants, offset, offset + PAGE - 1, 'WITHSCORES')
  for i = 1, #page, 2 do
    local tenant = page[i]
    local row = redis.call('HMGET', P .. 'tenant:' .. tenant, 'max_concurrent', 'weight', 'policy', 'deleting')
    local room = math.huge
    if row[1] then room = tonumber(row[1]) - tonumber(redis.call('HGET', P .. 'running', tenant) or '0') end
    if row[4] then room = 0 end -- nothing of it starts any more
    if room > 0 then
      found[#found + 1] = {id = tenant, score = tonumber(page[i + 1]), weight = tonumber(row[2] or '1'),
        weight_text = row[2] or '1', policy = policy_of(row[3]), room = room, ids = {}, at = 1, chunk = 8, popped = 0, taken = 0, est = 0, held = 0}
      offset = offset + 1
    else
      redis.call('ZREM', tenants, tenant)
      redis.call('SADD', P .. 'q:' .. lane .. ':parked', tenant)
    end
  end
  if #page < 2 * PAGE then return nil, math.huge end
  return offset, tonumber(page[#page])
end

-- The next ready job of a tenant, or nil.
local function next_job(lane, tenant, most)
  if tenant.at > #tenant.ids then
    local size = math.min(tenant.chunk, most)
    tenant.ids = redis.call('ZRANGE', P .. 'q:' .. lane .. ':' .. tenant.id, tenant.popped, tenant.popped + size - 1)
    tenant.at, tenant.chunk = 1, tenant.chunk * 4
    if #tenant.ids == 0 then return nil end
  end
  tenant.at, tenant.popped = tenant.at + 1, tenant.popped + 1
  return tenant.ids[tenant.at - 1]
end

local function claim_lane(lane, most)
  promote(lane, 200)
  local all, active, offset, known, taken, floor, popped = {}, {}, 0, -math.huge, 0, nil, {}
  while taken < most and expired < MOST_EXPIRED do
    local best
    for i, tenant in ipairs(active) do
      if not best or tenant.score < active[best].score then best = i end
    end
    if offset and (not best or active[best].score > known) then
      local from = #all
      offset, known = load_tenants(lane, offset, all)
      for i = from + 1, #all do active[#active + 1] = all[i] end
      if #active == 0 and not offset then break end
    elseif not best then
      break
    else
      local tenant = active[best]
      local job_id = next_job(lane, tenant, most - taken)
      if not job_id then
        table.remove(active, best)
      else
        local estimate, runs = start(job_id, lane, tenant.weight_text, tenant.policy)
        if not estimate then
          -- It stays where it is, and its tenant waits.
          tenant.popped, tenant.rated = tenant.popped - 1, int(now + math.ceil(runs / 1000))
          table.remove(active, best)
        else
          tenant.est = tenant.est + estimate
          popped[#popped + 1] = job_id
        end
        if estimate and runs then
          taken, floor = taken + 1, tenant.id
          tenant.taken, tenant.room = tenant.taken + 1, tenant.room - 1
          local held = cost(estimate, tenant.weight)
          tenant.score, tenant.held = bounded(tenant.score + held), tenant.held + held
          if tenant.room <= 0 then table.remove(active, best) end
        end
      end
    end
  end
  with_all('ZREM', P .. 'q:' .. lane .. ':ready', popped)
  for _, tenant in ipairs(all) do
    if tenant.popped > 0 or tenant.rated then
      if tenant.popped > 0 then
        redis.call('ZREMRANGEBYRANK', P .. 'q:' .. lane .. ':' .. tenant.id, 0, tenant.popped - 1)
      end
      if tenant.taken > 0 then
        redis.call('HINCRBY', P .. 'running', tenant.id, tenant.taken)
        redis.call('HINCRBY', P .. 'q:' .. lane .. ':held', tenant.id, int(tenant.held))
      end
      if queue_left(lane, tenant.id, tenant.popped, tenant.est) then
        if tenant.rated then
          redis.call('ZREM', P .. 'q:' .. lane .. ':tenants', tenant.id)
          redis.call('ZADD', P .. 'q:' .. lane .. ':rated', tenant.rated, tenant.id)
        elseif tenant.room > 0 then
          redis.call('ZADD', P .. 'q:' .. lane .. ':tenants', int(tenant.score), tenant.id)
        else
          redis.call('ZREM', P .. 'q:' .. lane .. ':tenants', tenant.id)
          redis.call('SADD', P .. 'q:' .. lane .. ':parked', tenant.id)
        end
      end
    end
  end
  if taken > 0 then
    redis.call('HSET', P .. 'q:' .. lane .. ':served', '!floor', int(served_of(lane, floor)))
    redis.call('HINCRBY', P .. 'pace:' .. lane, 'running', taken)
    redis.call('HSET', P .. 'pace:' .. lane, 'at', NOW)
  end
  return taken
end

local due, left, short = -1, a.count, {}
-- A later lane that has waited for long goes first, with one job: nobody is starved by an earlier lane.
for i = 2, #a.lanes do
  local lane = a.lanes[i]
  local row = redis.call('HMGET', P .. 'pace:' .. lane[1], 'ready', 'at')
  if left > 0 and lane[2] > 0 and tonumber(row[1] or '0') > 0 and now - tonumber(row[2] or '0') > a.patience_ms then
    local taken = claim_lane(lane[1], 1)
    left, lane[2] = left - taken, lane[2] - taken
  end
end
for _, lane in ipairs(a.lanes) do
  local most = math.min(left, lane[2])
  local taken = claim_lane(lane[1], most)
  left, short[lane[1]] = left - taken, taken < most
  local next_due = tonumber(redis.call('ZRANGE', P .. 'delayed:' .. lane[1], 0, 0, 'WITHSCORES')[2] or '-1')
  if next_due >= 0 and (due < 0 or next_due < due) then due = next_due end
  local rated = tonumber(redis.call('ZRANGE', P .. 'q:' .. lane[1] .. ':rated', 0, 0, 'WITHSCORES')[2] or '-1')
  if rated >= 0 and (due < 0 or rated < due) then due = rated end
end
for _, lane in ipairs(a.lanes) do
  local asleep = left > 0 and short[lane[1]] and expired < MOST_EXPIRED
  redis.call(asleep and 'SADD' or 'SREM', P .. 'idle:' .. lane[1], a.worker)
  -- What this worker leaves is for the next one that sleeps: one wake-up may stand for many free slots.
  if not asleep and redis.call('EXISTS', P .. 'q:' .. lane[1] .. ':tenants') == 1 then wake(lane[1]) end
end
if expired >= MOST_EXPIRED then due = now end
with_all('ZADD', KEYS[1], leased)
with_all('ZREM', KEYS[2], begun)
flush()
return {NOW, int(due), cmsgpack.pack(out)}
