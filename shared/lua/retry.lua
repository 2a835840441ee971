-- retry: opens the next run of a job that ended without a result. Its journal and output are kept unless
-- `from_start`.
-- KEYS  1 job record   2 job journal   3 the parts of its output
-- ARGV  prefix, job, tenant, from_start (bool), record (map of fields to change, e.g. spec and model), expires_in_ms,
--       class_ms, unpriced (bool: no price of its model is known)
-- Returns {'ok'}   {'full', jobs that wait, limit, seconds until there may be room} the tenant has maxQueuedJobs jobs waiting
--         {'rate', why} too many requests for now   {'budget', why} at a hard limit; `why` is JSON
--         {'unpriced', scope} a hard limit in money, and no price of the model
--         {'none'} no such job of this tenant   {'state', status} not in a state for this
-- Events job.queued
--@include base
--@include hooks
--@include queue
--@include pace
--@include limits
--@include outcomes
local key = KEYS[1]
local row = redis.call('HMGET', key, 'tenant', 'status', 'lane', 'grant', 'attempt', 'est', 'key', 'user', 'prompt', 'hook')
if row[1] ~= a.tenant then return {'none'} end
if row[2] ~= 'failed' and row[2] ~= 'cancelled' and row[2] ~= 'expired' then return {'state', row[2]} end
if redis.call('HEXISTS', P .. 'tenant:' .. a.tenant, 'deleting') == 1 then return {'none'} end
local waiting, bound = queue_room(a.tenant, redis.call('HGET', P .. 'tenant:' .. a.tenant, 'max_queued'))
if waiting >= bound then return {'full', int(waiting), int(bound), int(room_in_s(row[3], a.tenant))} end
local prompt = a.record.prompt or row[9]
local refused = admit_limits(scopes_of(tenant_policy(row[1]), row[1], row[7], row[8], prompt), 0, nil, a.unpriced)
if refused then return refused end
if a.from_start then
  -- The steps are forgotten; that their calls were booked is not: one may still come in late.
  for _, name in ipairs(redis.call('HKEYS', KEYS[2])) do
    if string.sub(name, 1, 5) ~= 'call:' then redis.call('HDEL', KEYS[2], name) end
  end
  -- By their own keys: below the prefix the next run writes.
  local trash = {}
  for _, value in ipairs(redis.call('HVALS', KEYS[3])) do trash[#trash + 1] = string.match(value, '%S+$') end
  with_all('SADD', P .. 'trash', trash)
  redis.call('DEL', KEYS[3])
end
redis.call('ZREM', P .. 'retention', a.job)
redis.call('HDEL', key, 'finished_ms', 'error', 'result', 'cancel_ms', 'cancelled_ms', 'cancel_tokens',
  'upstream_closed_ms', 'settled', 'handed_back', 'progress', 'due_ms', 'wait_reason', 'lost', 'started_ms', 'told',
  'grace_ms', 'waiting', 'start_by_ms', 'not_begun')
redis.call('ZREM', P .. 'listened', a.job)
for field, value in pairs(a.record) do
  if value == '' then redis.call('HDEL', key, field) else redis.call('HSET', key, field, value) end
end
if a.record.prompt then
  -- What was used until now was another prompt's.
  local used = redis.call('HMGET', key, 'tok_in', 'tok_out', 'tok_embed', 'cost_nano', 'tok_unpriced')
  local tokens = 0
  for place = 1, 3 do tokens = tokens + tonumber(used[place] or '0') end
  redis.call('HSET', key, 'told_nano', used[4] or '0', 'told_unpriced', used[5] or '0')
  if a.record.exp ~= '' then
    redis.call('HDEL', key, 'told_tok')
    redis.call('HSET', key, 'base_tok', int(tokens))
    assigned(a.record, a.tenant)
  else
    redis.call('HSET', key, 'told_tok', int(tokens))
  end
end
local score = now + a.class_ms
-- Attempts go on counting; this run may use as many as the first one might.
redis.call('HSET', key, 'status', 'queued', 'queued_ms', NOW, 'score', int(score),
  'max_attempts', int(tonumber(row[5]) + tonumber(row[4])), 'expires_ms', int(now + a.expires_in_ms))
redis.call('HINCRBY', key, 'run', 1)
redis.call('ZADD', P .. 'expiring', int(now + a.expires_in_ms), a.job)
if row[10] then watch_hook(a.job) end
emit(a.job, 'job.queued', '{"reason":"retry"}')
queue_push(a.job, row[3], row[1], score, tonumber(row[6] or '0'))
return {'ok'}
