-- job: steps that several scripts share. Scripts that let go of jobs include limits, hooks and books before it. What concerns sets of all jobs is gathered in `acc` and written once per call
-- of the script by `flush`, which every script that includes this and releases or finishes jobs must call at its end.

local FIELDS = {'status', 'tenant', 'lane', 'owner', 'lease', 'settled', 'est', 'weight', 'seq', 'retention_ms',
  'claimed_ms', 'calls', 'prompt', 'exp', 'hook'}
local MORE = {'score', 'tok_at_claim', 'tok_in', 'tok_out', 'tok_embed', 'cancel_ms', 'cancel_tokens', 'wait_reason'}

local function read(key, row, names)
  local values = redis.call('HMGET', key, unpack(names))
  for i = 1, #names do row[names[i]] = values[i] end
  return row
end

-- A job's record as a table, absent fields false: what every step below needs, and `load_more` what some do.
local function load(key)
  return read(key, {}, FIELDS)
end

local function load_more(key, row)
  if row.score == nil then read(key, row, MORE) end
  return row
end

-- Whether the record has what every write below computes with: looked at before the first write.
local function sound(row)
  return row.tenant and row.lane and tonumber(row.seq) and tonumber(row.retention_ms) and
    tonumber(row.weight or '1') and tonumber(row.est or '0') and tonumber(row.lease)
end

local function tokens_of(row)
  return tonumber(row.tok_in or '0') + tonumber(row.tok_out or '0') + tonumber(row.tok_embed or '0')
end

-- Whether the caller still holds the job: same worker, same lease number, and the job is running.
local function holds(row, worker, lease)
  return row.owner == worker and row.lease == tostring(lease) and
    (row.status == 'processing' or row.status == 'cancelling')
end

local function holds_lease(key, worker, lease)
  local row = redis.call('HMGET', key, 'owner', 'lease', 'status')
  return row[1] == worker and row[2] == tostring(lease) and (row[3] == 'processing' or row[3] == 'cancelling')
end

local acc = {unleased = {}, kept = {}, unexpiring = {}, freed = {}, slots = {}, used = {}, ran = {}}

-- What the books want to know of a job.
local BOOKED = {'tenant', 'key', 'user', 'prompt', 'type', 'model', 'hook'}

-- Books what was in flight when a worker let go of a job: the input of its calls and the output that was seen of them, as
-- estimated and wasted. If such a call ends after all (its worker was only frozen), finish_step corrects it.
local function book_open_calls(job_id, key, row)
  local open = P .. 'open:' .. job_id
  local entries, seen = redis.call('HGETALL', open), {}
  if #entries == 0 then return end
  for i = 1, #entries, 2 do
    local call_id = string.match(entries[i], '^(.*):o$')
    if call_id then seen[call_id] = tonumber(entries[i + 1]) end
  end
  local job = read(key, {}, BOOKED)
  for i = 1, #entries, 2 do
    local call_id = entries[i]
    if string.sub(call_id, -2) ~= ':o' then
      local hold = cjson.decode(entries[i + 1])
      -- One that still waited for a place at the model was never sent.
      local sent = seen[call_id] ~= -1
      local input, embedded, output = hold.e and 0 or hold.i, hold.e and hold.i or 0, seen[call_id] or 0
      local total = input + embedded + output
      let_go(hold, sent and total or 0, job.tenant)
      if sent then
        local nano = nil
        if hold.pi then nano = nano_of(hold, hold.i, output) end
        local call = {id = call_id, step = hold.s, model = hold.m, version = hold.pv, estimated = true}
        book(job_id, key, job, call, input, output, embedded, total, nano)
        redis.call('HSET', P .. 'journal:' .. job_id, 'call:' .. call_id,
          cjson.encode({i = input, o = output, e = embedded, n = nano}))
      end
    end
  end
  redis.call('DEL', open)
  if job.tok_in then row.tok_in, row.tok_out, row.tok_embed = job.tok_in, job.tok_out, job.tok_embed end
  row.seq = redis.call('HGET', key, 'seq')
end

-- Takes a job off its worker: lease, slot, and the correction of the tenant's counter by what was really used. That its
-- worker no longer holds it is seen by its status, or by the next owner.
local function release(job_id, key, row)
  -- Without a call no token was spent: the figures of earlier attempts need not be read.
  local used = 0
  if row.calls then
    book_open_calls(job_id, key, load_more(key, row))
    used = tokens_of(row) - tonumber(row.tok_at_claim or '0')
  end
  acc.unleased[#acc.unleased + 1] = job_id
  acc.freed[row.tenant] = (acc.freed[row.tenant] or 0) + 1
  acc.slots[row.lane] = (acc.slots[row.lane] or 0) + 1
  local name, weight = row.lane .. ' ' .. row.tenant, tonumber(row.weight or '1')
  local sum = acc.used[name] or {row.lane, row.tenant, 0, 0}
  sum[3] = sum[3] + cost(used, weight)
  sum[4] = sum[4] + cost(tonumber(row.est or '0'), weight)
  acc.used[name] = sum
end

-- Notes how long an attempt that ran its course took: the lane's recent rate is made of these.
local function note_run(row)
  local ms = math.max(0, now - tonumber(row.claimed_ms or NOW))
  local ran = acc.ran[row.lane] or {0, 0, 0}
  acc.ran[row.lane] = {ran[1] + 1, ran[2] + ms, ran[3] + ms * ms}
end

-- Writes a final state, once, with its event; the record stays until `retention_ms` from now. Further arguments are
-- fields and values of the record.
local function finish(job_id, key, row, status, data, ...)
  local keep, seq = text[now + tonumber(row.retention_ms)], tonumber(row.seq) + 1
  row.seq = seq
  redis.call('HSET', key, 'status', status, 'finished_ms', NOW, 'expires_ms', keep, 'seq', text[seq], ...)
  acc.kept[#acc.kept + 1] = keep
  acc.kept[#acc.kept + 1] = job_id
  if row.status ~= 'processing' and row.status ~= 'cancelling' then
    acc.unexpiring[#acc.unexpiring + 1] = job_id
  end
  if row.prompt and (status == 'complete' or status == 'failed') then outcome(key, row, status, data) end
  emit_as(job_id, seq, 'job.' .. status, data)
  if row.hook then hook_end(job_id, row.tenant, row.hook, seq, status) end
end

-- Whether a job may begin anew. One that lives only while somebody listens (`grace_ms`, a chat) may not once text went
-- out: its reader cannot take the text back.
local function may_restart(key)
  local row = redis.call('HMGET', key, 'grace_ms', 'text_seq')
  return not (row[1] and row[1] ~= '' and row[2] and row[2] ~= '')
end

-- The end of a job whose worker was lost; the caller has released it.
local function fail_lost(job_id, key, row, message)
  local err = '{"code":"worker_lost","message":"' .. message .. '","retryable":false}'
  finish(job_id, key, row, 'failed', '{"error":' .. err .. '}', 'error', err)
end

-- Asks for the end of a job. One that runs is ended by its worker. Returns the status after.
local function cancel(job_id, key, row)
  load_more(key, row)
  local status = row.status
  if status == 'queued' or status == 'scheduled' or status == 'waiting' then
    queue_remove(job_id, row.lane, row.tenant, row.est)
    unschedule(job_id, row.lane, row.tenant, row.wait_reason == 'rateLimit' and 'scheduled' or status)
    unpause(job_id, row.tenant)
    finish(job_id, key, row, 'cancelled', '{}', 'cancel_ms', NOW, 'cancel_tokens', tokens_of(row), 'cancelled_ms', NOW,
      'error', '', 'due_ms', '', 'wait_reason', '', 'waiting', '')
    return 'cancelled'
  end
  if status == 'processing' then
    status = 'cancelling'
    redis.call('HSET', key, 'status', status, 'cancel_ms', NOW, 'cancel_tokens', tokens_of(row))
  end
  -- Said again with each call: the worker may have missed it.
  if status == 'cancelling' then redis.call('PUBLISH', P .. 'ctl:' .. row.owner, 'cancel ' .. job_id .. ' ' .. row.lease) end
  return status
end

-- Hands a job back that its worker holds: the same attempt goes on elsewhere, at its old place.
local function hand_back(job_id, key, row)
  release(job_id, key, row)
  local seq = tonumber(row.seq) + 1
  redis.call('HSET', key, 'status', 'queued', 'queued_ms', NOW, 'handed_back', 1, 'seq', seq, 'told', '',
    'settled', row.lease)
  emit_as(job_id, seq, 'job.queued', '{"reason":"handback"}')
  load_more(key, row)
  queue_push(job_id, row.lane, row.tenant, tonumber(row.score), tonumber(row.est or '0'))
end

-- Weight of the past in a lane's mean run time, per attempt: the last fifty or so count.
local DECAY = 0.98

-- Writes what was gathered.
local function flush()
  with_all('ZREM', P .. 'leases', acc.unleased)
  with_all('ZADD', P .. 'retention', acc.kept)
  with_all('ZREM', P .. 'expiring', acc.unexpiring)
  for _, sum in pairs(acc.used) do charge(sum[1], sum[2], sum[3], sum[4]) end
  for lane, count in pairs(acc.slots) do redis.call('HINCRBY', P .. 'pace:' .. lane, 'running', 0 - count) end
  for lane, ran in pairs(acc.ran) do
    local past = redis.call('HMGET', P .. 'pace:' .. lane, 'n', 's1', 's2')
    local keep = DECAY ^ ran[1]
    redis.call('HSET', P .. 'pace:' .. lane, 'n', tonumber(past[1] or '0') * keep + ran[1],
      's1', tonumber(past[2] or '0') * keep + ran[2], 's2', tonumber(past[3] or '0') * keep + ran[3])
  end
  for tenant, count in pairs(acc.freed) do
    if redis.call('HINCRBY', P .. 'running', tenant, 0 - count) <= 0 then
      redis.call('HDEL', P .. 'running', tenant)
    end
    unpark(tenant)
  end
end
