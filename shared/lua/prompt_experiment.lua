-- prompt_experiment: begins, changes or ends an experiment on a label of a prompt.
-- KEYS  1 prompt   2 its ended experiments   3 the running experiments that have guardrails   4 the owner's record
-- ARGV  prefix, owner, name, label, act ('set' | 'stop' | 'promote' | 'roll_back'),
--       running (`<id> <rev>` of the experiment that is expected to run; '*' for any, '' for none; absent: whichever
--       runs, or none),
--       experiment (JSON, of a set), versions (list that must exist), guarded (bool: it has guardrails),
--       version (of a promotion), why (text, of an end), promotes (true: also on a protected label), audit, action and
--       details (map of member to {old, new} as JSON text or false) of its entry, most_past
-- Returns {'ok', JSON of the label}   {'none'} no such prompt   {'no_tenant'}   {'deleting', its id}   {'no_label'}
--         {'none_running'}   {'stale'} another runs   {'no_version', how many there are}   {'protected', label}
--@include base
--@include audit
--@include prompts
local refused = owner_refused(KEYS[4])
if refused then return refused end
local stands, count = standing(KEYS[1])
if not stands then return {'none'} end
local label = label_of(KEYS[1], a.label)
if not label then return {'no_label'} end
if label.protected and not a.promotes then return {'protected', a.label} end
local field = 'x:' .. a.label
local stored = redis.call('HGET', KEYS[1], field)
local runs = stored and cjson.decode(stored)
local now_runs = runs and runs.id .. ' ' .. int(runs.rev) or ''
if a.running and a.running ~= now_runs and not (a.running == '*' and runs) then return {'stale'} end
if not runs and a.act ~= 'set' then return {'none_running'} end
for _, version in ipairs(a.versions) do
  if version > count then return {'no_version', int(count)} end
end

local member = a.owner .. ' ' .. a.name .. ' ' .. a.label
if a.act == 'set' then
  redis.call('HSET', KEYS[1], field, a.experiment)
  redis.call(a.guarded and 'SADD' or 'SREM', KEYS[3], member)
else
  end_experiment(KEYS[1], a.label, stored, a.why)
  if a.act == 'promote' then
    move_label(KEYS[1], a.label, a.version, label)
  elseif a.act == 'roll_back' and #label.past > 0 then
    -- One that has been nowhere else stays where it is.
    label.version, label.rev = table.remove(label.past), label.rev + 1
    put_label(KEYS[1], a.label, label)
  end
end
redis.call('HSET', KEYS[1], 'updated_ms', NOW)
told(a.action, a.details)
publish()
return {'ok', redis.call('HGET', KEYS[1], 'l:' .. a.label)}
