-- begin_step: looks a step up in the journal before its call is made; else reserves the call in the books and marks the
-- step as started, all or nothing. Safe to repeat.
-- KEYS  1 job record   2 job journal   3 the job's calls under way
-- ARGV  prefix, job, worker, lease, step (name and input hash), label (for events), call (id of this call),
--       once (bool: a step that was started and not finished is not started again), again_after (call id: unless it was
--       started as this one),
--       and for a step that calls a model: model, tokens (of the input), embeds (bool: these are to be embedded), most
--       (output tokens that the call may have; 0: no bound), input_pico and output_pico (price in pico-USD per token;
--       absent: unknown), price_version, waits (bool: the call waits for a place at the model; until `dispatched` says
--       that it has one, a lost worker is charged nothing for it)
-- Returns {'done', result} finished before, do not call
--         {'new', output tokens reserved or -1 (no limit to ask), bytes per token learned of the model or ''} started
--         {'lost'} the lease is lost   {'unsure', call id} started before, end unknown
--         {'rate', why} over a token rate for now   {'held', why} what is left of a budget is reserved for other calls
--         {'spent', why} at a hard limit
--         {'unpriced', why} a hard limit in money, and no price of the model; `why` is JSON
-- Events job.step (started, or finished and reused)
--@include base
--@include queue
--@include limits
--@include hooks
--@include books
--@include job
if not holds_lease(KEYS[1], a.worker, a.lease) then return {'lost'} end
local job = read(KEYS[1], {}, BOOKED)
local ratio = a.model and redis.call('HGET', P .. 'ratios', a.model) or ''
local known = redis.call('HGET', KEYS[2], a.step)
if known then
  local entry = cmsgpack.unpack(known)
  if entry.result then
    if redis.call('HSETNX', KEYS[2], 'reused:' .. a.call, 1) == 1 then
      if entry.tokens > 0 then
        redis.call('HINCRBY', KEYS[1], 'tok_reused', entry.tokens)
        usage_row(job, a.model or job.model, {r = entry.tokens})
      end
      emit(a.job, 'job.step', '{"step":' .. cjson.encode(a.label) .. ',"state":"finished","reused":true}')
    end
    return {'done', entry.result}
  end
  if entry.call == a.call then
    local open = redis.call('HGET', KEYS[3], a.call)
    return {'new', open and cjson.decode(open).b or '-1', ratio}
  end
  if a.once and entry.call ~= a.again_after then return {'unsure', entry.call} end
end
local bound = '-1'
if a.model then
  local scopes = scopes_of(tenant_policy(job.tenant), job.tenant, job.key, job.user, job.prompt)
  local hold = {
    i = a.tokens, e = a.embeds or nil, m = a.model, s = a.label, pi = a.input_pico, po = a.output_pico, pv = a.price_version}
  local usual, calls = nil, 0
  if not a.embeds then usual, calls = usual_output(job.tenant, job.type or '', a.model) end
  local wish = 0
  if not a.embeds then
    wish = math.ceil(usual or FIRST_OUTPUT)
    if calls < KNOWN_CALLS then wish = math.max(wish, FIRST_OUTPUT) end
    if a.most > 0 then wish = math.min(wish, a.most) end
  end
  -- A call that is held whole cannot become longer.
  local care = a.most > 0 and a.most <= wish and 1 or care_of(calls)
  local granted, why = room(scopes, hold, wish, care)
  if not granted then
    why[2].revision = redis.call('HGET', P .. 'tenant:' .. job.tenant, 'revision') or '0'
    return {why[1], cjson.encode(why[2])}
  end
  local slow, writes = rate_check(scopes, 't', hold.i + granted)
  if slow then
    -- A chat that cannot wait for so long will not come back for it.
    local start_by = tonumber(redis.call('HGET', KEYS[1], 'start_by_ms') or '')
    if not start_by or slow.freesAt <= start_by then let_fill(slow) end
    slow.revision = redis.call('HGET', P .. 'tenant:' .. job.tenant, 'revision') or '0'
    return {'rate', cjson.encode(slow)}
  end
  rate_write(writes)
  hold.g, hold.r = hold.i + granted, {}
  for place, write in ipairs(writes) do hold.r[place] = {write[1], write[4], int(write[3])} end
  hold.h = {}
  for _, scope in ipairs(scopes) do
    if scope.policy and scope.policy.b then hold.h[#hold.h + 1] = scope.id end
  end
  if #hold.h > 0 then
    if not a.embeds then bound = int(granted) end
    reserve(hold, hold.i + granted, nano_of(hold, hold.i, granted))
  end
  hold.b = bound
  redis.call('HSET', KEYS[3], a.call, cjson.encode(hold))
  if a.waits then redis.call('HSET', KEYS[3], a.call .. ':o', '-1') end
  redis.call('HSET', KEYS[1], 'calls', 1)
end
redis.call('HSET', KEYS[2], a.step, cmsgpack.pack({call = a.call}))
emit(a.job, 'job.step', '{"step":' .. cjson.encode(a.label) .. ',"state":"started","reused":false}')
return {'new', bound, ratio}
