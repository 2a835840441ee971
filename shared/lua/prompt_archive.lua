-- prompt_archive: takes a prompt out of use: it is in no list, its labels and experiments end. Its versions stay: jobs may be
-- pinned on them, and one that is made under this name goes on counting.
-- KEYS  1 the prompt   2 index of its owner's prompts
-- ARGV  prefix, owner, name, may_promote (bool), audit (its entry)
-- Returns {'ok'}   {'none'} no such prompt   {'protected', label} one of its labels is, and the caller may not
--@include base
--@include audit
--@include prompts
if not is_there(KEYS[1]) then return {'none'} end
local gone = {}
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  local kind, label = string.match(field, '^([lx]):(.*)$')
  if kind then gone[#gone + 1] = field end
  if kind == 'l' and label_of(KEYS[1], label).protected and not a.may_promote then return {'protected', label} end
end
if #gone > 0 then redis.call('HDEL', KEYS[1], unpack(gone)) end
redis.call('HSET', KEYS[1], 'archived_ms', NOW, 'updated_ms', NOW)
redis.call('ZREM', KEYS[2], a.name)
note_prompt(a.owner, a.name, a.audit)
return {'ok'}
