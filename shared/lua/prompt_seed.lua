-- prompt_seed: a shipped default of a shared prompt: its next version, unless it has this text already. `production` moves
-- to it if `system` moved it last and no experiment runs on it: what an operator chose is left alone.
-- KEYS  1 prompt   2 its versions   3 index of the shared prompts
-- ARGV  prefix, owner ('shared'), name, content (canonical JSON), sha256, note, description, audit, most_versions, most_past
-- Returns 'known' it has this text   'added' it has it now   'moved' and `production` points at it   'full' it has too many
--         versions
--@include base
--@include audit
--@include prompts
local stands, count = standing(KEYS[1])
if stands then
  for number = 1, count do
    local beside = cjson.decode(redis.call('HGET', KEYS[2], 'm:' .. int(number)))
    if beside.sha256 == a.sha256 then return 'known' end
  end
end
if count >= a.most_versions then return 'full' end
local before = label_of(KEYS[1], 'production')
local version = add_version(KEYS[1], KEYS[2], KEYS[3], a)
local moves = (not before or before.by == 'system') and redis.call('HEXISTS', KEYS[1], 'x:production') == 0
if moves then
  move_label(KEYS[1], 'production', version, before)
  told('prompt.label_moved', {['labels.production'] = {before and int(before.version) or false, int(version)}})
end
publish()
return moves and 'moved' or 'added'
