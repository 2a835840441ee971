-- prompt_add: makes a prompt with its first version, or adds the next version to one; labels point at it at once. All or
-- nothing.
-- KEYS  1 the prompt   2 its versions   3 index of its owner's prompts   4 idempotency key (any name when none was sent)
-- ARGV  prefix, owner, name, is_new (bool: there must be none of this name), description (optional, of a new one),
--       content (JSON of the version, without what this script adds), sha256, note (optional), labels (list), by,
--       may_promote (bool: protected labels too), most_prompts, most_versions, most_labels, audit (its entry), idem_body
-- Returns {'ok', version, now ms, '0' or '1' replayed}   {'exists'} there is one   {'none'} there is none
--         {'protected', label} it is, and the caller may not move it   {'full', 'prompts' | 'versions' | 'labels'}
--         {'mismatch'} the idempotency key stands for another body
--@include base
--@include audit
--@include prompts
local again = replay(KEYS[4])
if again then
  if again[1] == 'ok' then again[4] = '1' end
  return again
end
local there = is_there(KEYS[1])
if a.is_new and there then return {'exists'} end
if not a.is_new and not there then return {'none'} end
local number = tonumber(redis.call('HGET', KEYS[1], 'versions') or '0') + 1
if number > a.most_versions then return {'full', 'versions'} end
if not there and redis.call('ZCARD', KEYS[3]) >= a.most_prompts then return {'full', 'prompts'} end
local fresh, known = 0, 0
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.sub(field, 1, 2) == 'l:' then known = known + 1 end
end
for _, label in ipairs(a.labels) do
  local before = label_of(KEYS[1], label)
  if not before then fresh = fresh + 1 end
  if before and before.protected and not a.may_promote then return {'protected', label} end
end
if fresh > 0 and known + fresh > a.most_labels then return {'full', 'labels'} end

if not there then
  -- One that was archived goes on where it was: jobs may be pinned on its versions.
  redis.call('HDEL', KEYS[1], 'archived_ms', 'description')
  redis.call('HSET', KEYS[1], 'created_ms', NOW)
  if a.description then redis.call('HSET', KEYS[1], 'description', a.description) end
  redis.call('ZADD', KEYS[3], NOW, a.name)
end
local stored = string.sub(a.content, 1, -2) .. ',"version":' .. int(number) .. ',"sha256":"' .. a.sha256 .. '","by":' ..
  cjson.encode(a.by) .. ',"atMs":' .. NOW .. (a.note and ',"note":' .. cjson.encode(a.note) or '') .. '}'
redis.call('HSET', KEYS[2], int(number), stored)
redis.call('HSET', KEYS[1], 'versions', int(number), 'updated_ms', NOW)
for _, label in ipairs(a.labels) do move_label(KEYS[1], label, number, a.by) end
note_prompt(a.owner, a.name, a.audit, '{"version":{"new":' .. int(number) .. '},"sha256":{"new":"' .. a.sha256 .. '"}' ..
  (#a.labels > 0 and ',"labels":{"new":' .. cjson.encode(a.labels) .. '}' or '') .. '}')
local reply = {'ok', int(number), NOW, '0'}
remember(KEYS[4], reply)
return reply
