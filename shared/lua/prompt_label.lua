-- prompt_label: points a label at a version, protects or removes it, or rolls it back to the version that it had before;
-- if it is still what the caller has read, and once per idempotency key.
-- KEYS  1 prompt   2 idempotency key (any name when none was sent)   3 the owner's record
-- ARGV  prefix, owner, name, label, act ('move', 'remove' or 'roll_back'), version (of a move), protected (of a move;
--       absent: as it is), note (optional), revs (list: it must be one of these; absent: any), must_exist, must_not_exist,
--       promotes (true: protected labels may be changed), audit, idem_body (absent = no key), and the bounds most_labels,
--       most_past
-- Returns {'ok', JSON of the label now ('' when it was removed), '0' or '1' replayed}   {'mismatch'}   {'none'} no such prompt
--         {'no_tenant'}   {'deleting', its id}   {'no_label'}   {'no_version', how many there are}   {'protected', label}
--         {'stale', JSON of the label now, or ''}   {'nothing'} it had no version before   {'full', 'labels'}
--         {'experiment'} one runs on the label: it is neither moved nor removed (rolled back, it ends)
--@include base
--@include audit
--@include prompts
local again = replay(KEYS[2])
if again then
  if again[1] == 'ok' then again[3] = '1' end
  return again
end
local refused = owner_refused(KEYS[3])
if refused then return refused end
local stands, count = standing(KEYS[1])
if not stands then return {'none'} end
local before = label_of(KEYS[1], a.label)
local member = 'labels.' .. a.label

-- Only a promoter changes a protected label, or which labels are protected.
local is_protected = before ~= nil and before.protected
local protects = a.protected ~= nil and a.protected ~= is_protected
if (is_protected or protects) and not a.promotes then return {'protected', a.label} end

local function is_stale()
  if not before then return a.must_exist or a.revs end
  if a.must_not_exist then return true end
  for _, rev in ipairs(a.revs or {}) do
    if rev == int(before.rev) then return false end
  end
  return a.revs ~= nil
end
if is_stale() then return {'stale', before and redis.call('HGET', KEYS[1], 'l:' .. a.label) or ''} end

local function done(text)
  local reply = {'ok', text, '0'}
  remember(KEYS[2], reply)
  return reply
end

local function tell(action, details)
  if a.note then details.note = {false, cjson.encode(a.note)} end
  redis.call('HSET', KEYS[1], 'updated_ms', NOW)
  told(action, details)
  publish()
end

local stored = redis.call('HGET', KEYS[1], 'x:' .. a.label)
if a.act == 'move' then
  -- Whoever is in would not be moved with it.
  if stored and not (before and before.version == a.version) then return {'experiment'} end
  if a.version > count then return {'no_version', int(count)} end
  if not before and #names_of(KEYS[1], 'l:') >= a.most_labels then return {'full', 'labels'} end
  local moves = not before or before.version ~= a.version
  -- Whoever puts a label of the system where it stands makes it theirs: no shipped default moves it any more.
  local adopts = before and before.by == 'system' and a.audit.actor ~= 'system'
  if not moves and not protects and not adopts then return done(redis.call('HGET', KEYS[1], 'l:' .. a.label)) end
  local details = {}
  if moves or not protects then details[member] = {before and int(before.version) or false, int(a.version)} end
  if protects then details[member .. '.protected'] = {tostring(is_protected), tostring(a.protected)} end
  local text = move_label(KEYS[1], a.label, a.version, before, a.protected)
  tell(moves and 'prompt.label_moved' or protects and 'prompt.label_protected' or 'prompt.label_moved', details)
  return done(text)
end

if not before then return {'no_label'} end
if a.act == 'remove' then
  if stored then return {'experiment'} end
  drop_label(KEYS[1], a.label, before)
  tell('prompt.label_removed', {[member] = {int(before.version), false}})
  return done('')
end
local old = before.version
if #before.past == 0 then return {'nothing'} end
-- At once, for those in an experiment too: it ends.
if stored then end_experiment(KEYS[1], a.label, stored, 'The label was rolled back.') end
before.version, before.rev = table.remove(before.past), before.rev + 1
local text = put_label(KEYS[1], a.label, before)
tell('prompt.rolled_back', {[member] = {int(old), int(before.version)}})
return done(text)
