-- hooks: deliveries of a job's events to the URL that it names (docs/webhooks.md). A delivery is written in the same step
-- as its event, for jobs that have a webhook only: all others pay one more field of a read. Needs base.

local HOOK_LIVES_MS = 5 * 86400000 -- a delivery that was not made by then is given up; the schedule takes 3.2 days
local HOOK_RESULT_BYTES = 8192 -- a longer result is left out of a delivery

-- Puts a delivery into one of a tenant's lists; those that are kept no longer leave it.
local function enlist(list, id, keep_ms)
  local most = keep_ms + HOOK_LIVES_MS
  redis.call('ZADD', list, 0, id)
  redis.call('ZREMRANGEBYLEX', list, '-', '(dlv_' .. ulid_time(math.max(0, now - most)))
  redis.call('PEXPIRE', list, int(most))
end

-- A delivery is due: its endpoint has something to do, and a courier that waits is told.
local function hand_over(endpoint, id)
  redis.call('ZADD', P .. 'hookq:' .. endpoint, NOW, id)
  if redis.call('ZADD', P .. 'hooks', 'LT', 'CH', NOW, endpoint) == 1 then redis.call('PUBLISH', P .. 'hookdue', 'due') end
end

-- Stores a delivery and hands it over. `fields` are those that it has of its own, in turn.
local function deliver(tenant, mark, id, kind, at, url, keep_ms, fields)
  local record, list = P .. 'delivery:' .. tenant .. ':' .. id, P .. 'deliveries:' .. tenant
  redis.call('HSET', record, 'id', id, 'type', kind, 'at_ms', int(at), 'url', url, 'mark', mark, 'keep_ms', int(keep_ms),
    'status', 'pending', 'tries', 0, 'made', 0, 'lease', 0, 'due_ms', NOW, unpack(fields))
  redis.call('PEXPIRE', record, int(keep_ms + HOOK_LIVES_MS))
  enlist(list, id, keep_ms)
  enlist(list .. ':pending', id, keep_ms)
  redis.call('ZADD', P .. 'undelivered', int(at), tenant .. ':' .. id)
  hand_over(tenant .. ':' .. mark, id)
end

-- Notes the delivery of event `seq` of a job, if its webhook (`wanted`, the record's field) wants that type. What it tells
-- is the record as it is now. The id follows from job, event and time: the same event is never noted twice.
local function hook(job_id, tenant, wanted, seq, kind, data, at)
  local events, mark, keep, url = string.match(wanted, '^(%S+) (%S+) (%d+) (.*)$')
  if not url or not string.find(events, ',' .. kind .. ',', 1, true) then return false end
  at = at or now
  local id = 'dlv_' .. ulid_time(at) .. string.upper(string.sub(redis.sha1hex(job_id .. ' ' .. int(seq)), 1, 16))
  if redis.call('EXISTS', P .. 'delivery:' .. tenant .. ':' .. id) == 1 then return false end
  local key, job = P .. 'job:' .. job_id, {}
  local names = {'id', 'tenant', 'type', 'status', 'priority', 'user', 'metadata', 'model', 'pins', 'prompt', 'attempt',
    'max_attempts', 'created_ms', 'queued_ms', 'started_ms', 'finished_ms', 'expires_ms', 'tok_in', 'tok_out', 'tok_embed',
    'tok_reused', 'tok_wasted', 'cost_nano', 'estimated', 'error', 'waiting', 'wait_reason', 'cancel_ms', 'cancelled_ms',
    'cancel_tokens', 'upstream_closed_ms'}
  for place, value in ipairs(redis.call('HMGET', key, unpack(names))) do
    if value and value ~= '' then job[names[place]] = value end
  end
  local size = redis.call('HSTRLEN', key, 'result')
  if size > 0 and size <= HOOK_RESULT_BYTES then job.result = redis.call('HGET', key, 'result') end
  local keep_ms, of_job = tonumber(keep), P .. 'jobdeliveries:' .. tenant .. ':' .. job_id
  deliver(tenant, mark, id, kind, at, url, keep_ms, {'job', job_id, 'seq', int(seq), 'row', cjson.encode(job),
    'result_bytes', size, 'data', kind == 'job.warning' and data or ''})
  redis.call('ZADD', of_job, 0, id)
  redis.call('PEXPIRE', of_job, int(keep_ms + HOOK_LIVES_MS))
  return true
end

-- A job with a webhook is not final: hook_repair looks whether a process that knows of no webhooks ended it.
local HOOK_LOOK_MS = 60000

local function watch_hook(job_id)
  redis.call('ZADD', P .. 'hooked', int(now + HOOK_LOOK_MS), job_id)
end

-- The job is final: its delivery is noted in this step.
local function hook_end(job_id, tenant, wanted, seq, status, at)
  redis.call('ZREM', P .. 'hooked', job_id)
  return hook(job_id, tenant, wanted, seq, 'job.' .. status, nil, at)
end
