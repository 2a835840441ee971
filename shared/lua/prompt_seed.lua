-- prompt_seed: puts a shipped default into the shared prompts, if none of its versions says the same; `production` follows
-- unless somebody has moved it.
-- KEYS  1 the prompt   2 its versions   3 index of the shared prompts
-- ARGV  prefix, owner, name, content, sha256, label, by, audit (its entry)
-- Returns the version that says it
--@include base
--@include audit
--@include prompts
local count = tonumber(redis.call('HGET', KEYS[1], 'versions') or '0')
for number = 1, count do
  local known = redis.call('HGET', KEYS[2], int(number))
  if known and cjson.decode(known).sha256 == a.sha256 then return number end
end
local number = count + 1
redis.call('HSET', KEYS[2], int(number), string.sub(a.content, 1, -2) .. ',"version":' .. int(number) .. ',"sha256":"' ..
  a.sha256 .. '","by":"' .. a.by .. '","atMs":' .. NOW .. ',"note":"shipped"}')
if count == 0 then redis.call('HSET', KEYS[1], 'created_ms', NOW) end
redis.call('HSET', KEYS[1], 'versions', int(number), 'updated_ms', NOW)
redis.call('HDEL', KEYS[1], 'archived_ms')
redis.call('ZADD', KEYS[3], 'NX', NOW, a.name)
local before = label_of(KEYS[1], a.label)
if not before or before.by == a.by then move_label(KEYS[1], a.label, number, a.by) end
note_prompt(a.owner, a.name, a.audit, '{"version":{"new":' .. int(number) .. '},"sha256":{"new":"' .. a.sha256 .. '"}}')
return number
