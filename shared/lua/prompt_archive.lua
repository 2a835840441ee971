-- prompt_archive: takes a prompt out of the lists, and its labels away. Its versions stay for the jobs that are pinned to
-- them.
-- KEYS  1 prompt   2 index of the owner's prompts   3 the owner's record
-- ARGV  prefix, owner, name, promotes (true: protected labels may be removed), audit
-- Returns {'ok'}   {'none'}   {'no_tenant'}   {'deleting', its id}   {'protected', label}   {'experiment'} one runs on a label
--@include base
--@include audit
--@include prompts
local refused = owner_refused(KEYS[3])
if refused then return refused end
local stands, count = standing(KEYS[1])
if not stands then return {'none'} end
if #names_of(KEYS[1], 'x:') > 0 then return {'experiment'} end
local labels, details = names_of(KEYS[1], 'l:'), {versions = {int(count), false}}
local found = {}
for _, label in ipairs(labels) do
  found[label] = label_of(KEYS[1], label)
  if found[label].protected and not a.promotes then return {'protected', label} end
  details['labels.' .. label] = {int(found[label].version), false}
end
for label, it in pairs(found) do drop_label(KEYS[1], label, it) end
redis.call('HSET', KEYS[1], 'archived', 1, 'updated_ms', NOW)
redis.call('ZADD', KEYS[2], -1, a.name)
told('prompt.archived', details)
publish()
return {'ok'}
