-- prompts: what the scripts that change prompts share. Needs base and audit. docs/adr/0015-prompts.md.

local PAST = 100 -- versions that a label remembers

-- A label of a prompt: {version, rev, atMs, by, protected, past}; nil when there is none.
local function label_of(key, label)
  local known = redis.call('HGET', key, 'l:' .. label)
  return known and cjson.decode(known) or nil
end

local function write_label(key, label, value)
  -- By hand: cjson writes an empty list as an object.
  local past = {}
  for place, version in ipairs(value.past) do past[place] = int(version) end
  local written = '{"version":' .. int(value.version) .. ',"rev":' .. int(value.rev) .. ',"atMs":' .. NOW .. ',"by":' ..
    cjson.encode(value.by) .. ',"protected":' .. tostring(value.protected) .. ',"past":[' .. table.concat(past, ',') .. ']}'
  redis.call('HSET', key, 'l:' .. label, written, 'updated_ms', NOW)
  return written
end

-- Points a label at a version; where it pointed before goes on its past. Returns it as it is stored.
local function move_label(key, label, version, by, protected)
  local before = label_of(key, label)
  local past = before and before.past or {}
  if before and before.version ~= version then past[#past + 1] = before.version end
  while #past > PAST do table.remove(past, 1) end
  if protected == nil then protected = before ~= nil and before.protected end
  return write_label(key, label, {
    version = version, rev = redis.call('HINCRBY', key, 'rev', 1), by = by, protected = protected, past = past})
end

-- Writes an entry of the audit log, and the same into the prompt's own; tells every process that the prompt has changed.
local function note_prompt(owner, name, entry, details)
  if details then entry.details = details end
  audit(entry)
  redis.call('XADD', P .. 'prompthist:' .. owner .. ':' .. name, 'MAXLEN', '~', 10000, '*', unpack(audit_fields(entry)))
  redis.call('PUBLISH', P .. 'prompts', owner .. ' ' .. name)
end

local function is_there(key)
  return redis.call('HEXISTS', key, 'versions') == 1 and redis.call('HEXISTS', key, 'archived_ms') == 0
end
