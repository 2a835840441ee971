-- prompt_experiment: begins, changes or ends an experiment on a label of a prompt.
-- KEYS  1 the prompt   2 its label's ended experiments   3 the running experiments that have guardrails
-- ARGV  prefix, owner, name, label, what ('set' | 'stop' | 'promote' | 'rollback'),
--       running (`<id> <rev>` of the experiment that is expected to run; '' for none; absent: whichever runs),
--       experiment (JSON, of a set), versions (list that must exist), guarded (bool: it has guardrails),
--       version (of a promotion), why (text, of an end), may_promote (bool), by, audit (its entry), details (JSON of it)
-- Returns {'ok', the label as JSON}   {'none'} no such prompt   {'no_label'}   {'none_running'}   {'stale'} another runs
--         {'no_version', how many there are}   {'protected'} the label is, and the caller may not
--         {'nothing_before'} the label cannot go back: the experiment has ended all the same
--@include base
--@include audit
--@include prompts
local KEPT_MS = 90 * 86400000 -- figures of an ended experiment
if not is_there(KEYS[1]) then return {'none'} end
local label = label_of(KEYS[1], a.label)
if not label then return {'no_label'} end
if label.protected and not a.may_promote then return {'protected'} end
local field = 'x:' .. a.label
local stored = redis.call('HGET', KEYS[1], field)
local runs = stored and cjson.decode(stored)
if a.running and a.running ~= (runs and runs.id .. ' ' .. int(runs.rev) or '') then return {'stale'} end
if not runs and a.what ~= 'set' then return {'none_running'} end
local count = tonumber(redis.call('HGET', KEYS[1], 'versions'))
for _, version in ipairs(a.versions or {}) do
  if version > count then return {'no_version', int(count)} end
end

local member = a.owner .. ' ' .. a.name .. ' ' .. a.label
local outcome = 'ok'
if a.what == 'set' then
  redis.call('HSET', KEYS[1], field, a.experiment, 'updated_ms', NOW)
  redis.call(a.guarded and 'SADD' or 'SREM', KEYS[3], member)
else
  redis.call('HDEL', KEYS[1], field)
  redis.call('SREM', KEYS[3], member)
  redis.call('LPUSH', KEYS[2], string.sub(stored, 1, -2) .. ',"endedMs":' .. NOW .. ',"endedBy":' .. cjson.encode(a.by) ..
    ',"why":' .. cjson.encode(a.why) .. '}')
  redis.call('LTRIM', KEYS[2], 0, 49)
  for _, kind in ipairs({'arms:', 'armunits:'}) do
    redis.call('PEXPIRE', P .. kind .. a.owner .. ':' .. runs.id, KEPT_MS)
  end
  if a.what == 'promote' then
    move_label(KEYS[1], a.label, a.version, a.by)
  elseif a.what == 'rollback' then
    local to = table.remove(label.past)
    if to then
      write_label(KEYS[1], a.label, {
        version = to, rev = redis.call('HINCRBY', KEYS[1], 'rev', 1), by = a.by, protected = label.protected,
        past = label.past})
    else
      outcome = 'nothing_before'
    end
  end
end
note_prompt(a.owner, a.name, a.audit, a.details)
return {outcome, redis.call('HGET', KEYS[1], 'l:' .. a.label)}
