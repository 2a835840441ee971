-- admit: takes a job in, all or nothing.
-- KEYS  1 index of the tenant's jobs   2 idempotency key (any name when none was sent)   3 tenant record
-- ARGV  prefix, tenant, lane, random (16 characters of the id), record (map of the job's first fields),
--       class_ms (class * agingSeconds, ms), delay_ms or run_at_ms (ms; absent = now), expires_in_ms,
--       (a record with `grace_ms` is cancelled when nobody has listened to the job for so long)
--       idem_body (hash of the body; absent = no key), companion (optional: {index, key prefix, id, fields}, a
--       document that is stored in the same step), patience_ms (an interactive job that would wait longer for its token
--       rate is refused; absent: any job waits), unpriced (bool: no price of its model is known), erases (a tenant that
--       the job is to erase: it is being deleted from now on, and neither limits nor the queue's bound hold for the job),
--       audit (the entry for that)
-- Returns {'ok', job id, now ms, status, due ms, '0' or '1' replayed, and for a queued job: rank from 0, tokens ahead,
--          what it waits for, time to its start in ms (middle, 90th percentile; -1 unknown)}; after the `replayed` mark how
--          its limits stand (JSON, '' without limits)
--         {'mismatch'} the idempotency key stands for another body     {'no_tenant'} the tenant was deleted
--         {'rate', why} too many requests for now   {'budget', why} at a hard limit; `why` is JSON
--         {'unpriced', scope} a hard limit in money, and no price of the model
--         {'full', jobs that wait, limit, seconds until there may be room} the tenant has maxQueuedJobs jobs waiting
--         {'no_target'} there is no tenant to erase   {'erasing', job id, its tenant} a job is at it already
-- Events job.queued (not for a job that starts later)
--@include base
--@include hooks
--@include queue
--@include pace
--@include limits
--@include audit
--@include erasure
--@include outcomes
local again = replay(KEYS[2])
if again and again[1] == 'ok' and a.record.grace_ms then
  -- A chat that was not begun was answered with 503 or 429: the same request may come again.
  local row = redis.call('HMGET', P .. 'job:' .. again[2], 'status', 'attempt', 'not_begun')
  if ((row[1] == 'cancelled' or row[1] == 'expired') and row[2] == '0') or row[3] then again = nil end
end
if again then
  if again[1] == 'ok' then again[6], again[7] = '1', '' end
  return again
end
local limit = redis.call('HMGET', KEYS[3], 'id', 'max_queued', 'policy', 'deleting')
if not limit[1] or limit[4] then return {'no_tenant'} end
local waiting, bound = queue_room(a.tenant, limit[2])
if waiting >= bound and not a.erases then return {'full', int(waiting), int(bound), int(room_in_s(a.lane, a.tenant))} end
local scopes = a.erases and {} or scopes_of(policy_of(limit[3]), a.tenant, a.record.key, a.record.user, a.record.prompt)
local refused = a.erases and erasure_refused(a.erases) or
  admit_limits(scopes, tonumber(a.record.est or 0), a.patience_ms, a.unpriced)
if refused then return refused end

local job_id = 'job_' .. ulid_now(a.random)
local key = P .. 'job:' .. job_id
local due = now
if a.run_at_ms then due = math.max(now, a.run_at_ms) elseif a.delay_ms then due = now + a.delay_ms end
local status = due > now and 'scheduled' or 'queued'
local score = due + a.class_ms
local expires = due + a.expires_in_ms
-- One HSET for all of the record, and no publication: nobody can listen to a job whose id nobody knows yet.
local flat = {'id', job_id, 'tenant', a.tenant, 'lane', a.lane, 'status', status, 'created_ms', int(now),
  'score', int(score), 'run', 1, 'attempt', 0, 'lease', 0, 'expires_ms', int(expires)}
for field, value in pairs(a.record) do
  flat[#flat + 1] = field
  flat[#flat + 1] = value
end
if a.patience_ms then
  flat[#flat + 1] = 'start_by_ms'
  flat[#flat + 1] = int(now + a.patience_ms)
end
if status == 'queued' then
  redis.call('HSET', key, 'seq', 1, 'queued_ms', int(now), unpack(flat))
  redis.call('XADD', P .. 'log:' .. job_id, '1-0', 't', 'job.queued', 'a', int(now), 'd', '{}')
else
  redis.call('HSET', key, 'seq', 0, 'due_ms', int(due), unpack(flat))
end
redis.call('ZADD', KEYS[1], 0, job_id)
if a.erases then
  begin_erasure(a.erases, job_id, a.tenant)
  audit(a.audit)
end
if redis.call('HINCRBY', P .. 'usage:' .. a.tenant .. ':' .. WINDOW.d, '#' .. usage_field(a.record, a.record.model), 1) == 1 then
  redis.call('ZADD', P .. 'usagedays:' .. a.tenant, WINDOW.d, WINDOW.d)
end
redis.call('ZADD', P .. 'expiring', expires, job_id)
if a.record.hook then watch_hook(job_id) end
assigned(a.record, a.tenant)
if a.record.grace_ms then redis.call('ZADD', P .. 'listened', now + a.record.grace_ms, job_id) end
if a.companion then
  local c = a.companion
  local fields = {'id', c.id, 'job_id', job_id, 'created_ms', int(now)}
  for field, value in pairs(c.fields) do
    fields[#fields + 1] = field
    fields[#fields + 1] = value
  end
  redis.call('HSET', c.key, unpack(fields))
  redis.call('ZADD', c.index, 0, c.id)
end
local reply = {'ok', job_id, NOW, status, int(due), '0', standing(scopes)}
if status == 'queued' then
  local est = tonumber(a.record.est or 0)
  local woken = queue_push(job_id, a.lane, a.tenant, score, est, a.record.priority)
  local rank = redis.call('ZRANK', P .. 'q:' .. a.lane .. ':' .. a.tenant, job_id)
  local ahead, waiting, middle, high = outlook(a.lane, a.tenant, rank, est, woken)
  for _, value in ipairs({int(rank), int(ahead), waiting, int(middle), int(high)}) do reply[#reply + 1] = value end
else
  redis.call('ZADD', P .. 'delayed:' .. a.lane, int(due), job_id)
  redis.call('HINCRBY', P .. 'scheduled', a.tenant, 1)
  wake(a.lane)
end
remember(KEYS[2], reply)
return reply
