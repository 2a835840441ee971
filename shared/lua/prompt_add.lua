-- prompt_add: makes a prompt, or adds the next version to one; labels point at it in the same step. All or nothing, once
-- per idempotency key. A prompt of a name that was archived goes on with the next number.
-- KEYS  1 prompt   2 its versions   3 index of the owner's prompts   4 idempotency key (any name when none was sent)
--       5 the owner's record
-- ARGV  prefix, owner, name, creates (true: it must not exist; else it must), description (optional), content (canonical
--       JSON), sha256, note (optional), labels (list), promotes (true: protected labels may be moved), audit,
--       idem_body (hash of the body; absent = no key), and the bounds most_prompts, most_archived, most_versions,
--       most_labels, most_past
-- Returns {'ok', version, now ms, by, description or '', '0' or '1' replayed}   {'mismatch'}   {'exists'}   {'none'}
--         {'no_tenant'}   {'deleting', its id}   {'full', 'prompts', 'versions' or 'labels'}   {'protected', label}
--@include base
--@include audit
--@include prompts
local again = replay(KEYS[4])
if again then
  if again[1] == 'ok' then again[6] = '1' end
  return again
end
local refused = owner_refused(KEYS[5])
if refused then return refused end
local stands, count = standing(KEYS[1])
if a.creates and stands then return {'exists'} end
if not a.creates and not stands then return {'none'} end
if count >= a.most_versions then return {'full', 'versions'} end
if not stands and (redis.call('ZCOUNT', KEYS[3], 0, '+inf') >= a.most_prompts or
    count == 0 and redis.call('ZCARD', KEYS[3]) >= a.most_archived) then
  return {'full', 'prompts'}
end
local labels, before = #names_of(KEYS[1], 'l:'), {}
for _, label in ipairs(a.labels) do
  before[label] = label_of(KEYS[1], label)
  if not before[label] then labels = labels + 1 end
  if before[label] and before[label].protected and not a.promotes then return {'protected', label} end
end
if labels > a.most_labels then return {'full', 'labels'} end

local version = add_version(KEYS[1], KEYS[2], KEYS[3], a)
for _, label in ipairs(a.labels) do
  local old = before[label] and int(before[label].version) or false
  move_label(KEYS[1], label, version, before[label])
  told('prompt.label_moved', {['labels.' .. label] = {old, int(version)}})
end
publish()
local description = redis.call('HGET', KEYS[1], 'description') or ''
local reply = {'ok', int(version), NOW, a.audit.actor, description, '0'}
remember(KEYS[4], reply)
return reply
