-- prompts: what scripts that change prompts share. They take `owner`, `name` and `audit` (the entry without action and
-- details: shared.audit.prompt_entry) among their arguments. Needs base and audit.

local HISTORY = P .. 'prompthist:' .. a.owner .. ':' .. a.name

-- Why nothing of the owner may be changed: {'no_tenant'}, {'deleting', its id}; nil when it may.
local function owner_refused(record)
  if a.owner == 'shared' then return nil end
  local tenant = redis.call('HMGET', record, 'id', 'deleting')
  if not tenant[1] then return {'no_tenant'} end
  if tenant[2] then return {'deleting', tenant[1]} end
end

-- Writes an entry to the audit log and to the prompt's history. `details` maps a member to {old, new}, each JSON as text
-- or false.
local function told(action, details)
  local members = {}
  for member, change in pairs(details) do
    local values = {}
    if change[1] then values[#values + 1] = '"old":' .. change[1] end
    if change[2] then values[#values + 1] = '"new":' .. change[2] end
    members[#members + 1] = cjson.encode(member) .. ':{' .. table.concat(values, ',') .. '}'
  end
  table.sort(members)
  a.audit.action, a.audit.details = action, '{' .. table.concat(members, ',') .. '}'
  audit(a.audit, HISTORY)
end

-- Whether there is such a prompt, which was not archived; and how many versions it has, also when it was.
local function standing(record)
  local row = redis.call('HMGET', record, 'versions', 'archived')
  return row[1] and not row[2], tonumber(row[1] or '0')
end

-- The names of fields of a kind: `l:` labels, `x:` experiments.
local function names_of(record, kind)
  local found = {}
  for _, field in ipairs(redis.call('HKEYS', record)) do
    if string.sub(field, 1, 2) == kind then found[#found + 1] = string.sub(field, 3) end
  end
  return found
end

-- A label as shared.prompts.Label, nil when there is none.
local function label_of(record, label)
  local text = redis.call('HGET', record, 'l:' .. label)
  return text and cjson.decode(text) or nil
end

-- Writes a label; returns its JSON. By hand: cjson makes an object of an empty list.
local function put_label(record, label, it)
  local past = {}
  for place, version in ipairs(it.past) do past[place] = int(version) end
  local text = '{"version":' .. int(it.version) .. ',"rev":' .. int(it.rev) .. ',"atMs":' .. NOW .. ',"by":' ..
    cjson.encode(a.audit.actor) .. ',"protected":' .. tostring(it.protected) .. ',"past":[' .. table.concat(past, ',') .. ']}'
  redis.call('HSET', record, 'l:' .. label, text)
  return text
end

-- Points a label at a version, and where it pointed stands on its past. `before` is what it is now, nil when it is new:
-- then it begins above the revs of all that were removed, so that no rev ever comes again. Returns its JSON.
local function move_label(record, label, version, before, protected)
  local it = before or {rev = tonumber(redis.call('HGET', record, 'revs') or '0'), past = {}, protected = false}
  if it.version and it.version ~= version then
    it.past[#it.past + 1] = it.version
    if #it.past > a.most_past then table.remove(it.past, 1) end
  end
  it.version, it.rev = version, it.rev + 1
  if protected ~= nil then it.protected = protected end
  return put_label(record, label, it)
end

-- Removes a label.
local function drop_label(record, label, it)
  local revs = tonumber(redis.call('HGET', record, 'revs') or '0')
  redis.call('HDEL', record, 'l:' .. label)
  redis.call('HSET', record, 'revs', int(math.max(revs, it.rev)))
end

-- Adds a version, and makes the prompt where there is none. `it` has content (canonical JSON), sha256, note. Returns its
-- number.
local function add_version(record, versions, index, it)
  local stands, count = standing(record)
  local number = int(count + 1)
  local beside = '{"sha256":"' .. it.sha256 .. '","atMs":' .. NOW .. ',"by":' .. cjson.encode(a.audit.actor)
  if it.note then beside = beside .. ',"note":' .. cjson.encode(it.note) end
  redis.call('HSET', versions, 'v:' .. number, it.content, 'm:' .. number, beside .. '}')
  redis.call('HSET', record, 'versions', number, 'updated_ms', NOW)
  local details = {version = {false, number}, sha256 = {false, '"' .. it.sha256 .. '"'}}
  if it.note then details.note = {false, cjson.encode(it.note)} end
  if stands then
    told('prompt.version_added', details)
  else
    redis.call('HDEL', record, 'archived', 'description')
    redis.call('HSET', record, 'created_ms', NOW)
    if it.description then redis.call('HSET', record, 'description', it.description) end
    redis.call('ZADD', index, NOW, a.name)
    told('prompt.created', details)
  end
  return count + 1
end

-- Tells every process that labels of the prompt are others now.
local function publish()
  redis.call('PUBLISH', P .. 'prompts', a.owner .. ' ' .. a.name)
end

local KEPT_MS = 90 * 86400000 -- figures of an ended experiment

-- Ends the experiment that runs on a label (`stored` is its JSON): it is kept with when, by whom and why.
local function end_experiment(record, label, stored, why)
  redis.call('HDEL', record, 'x:' .. label)
  redis.call('SREM', P .. 'guarded', a.owner .. ' ' .. a.name .. ' ' .. label)
  local ended = P .. 'experiments:' .. a.owner .. ':' .. a.name
  redis.call('LPUSH', ended, string.sub(stored, 1, -2) .. ',"endedMs":' .. NOW .. ',"endedBy":' .. cjson.encode(a.audit.actor) ..
    ',"why":' .. cjson.encode(why) .. '}')
  redis.call('LTRIM', ended, 0, 99)
  for _, kind in ipairs({'arms:', 'armunits:'}) do
    redis.call('PEXPIRE', P .. kind .. a.owner .. ':' .. cjson.decode(stored).id, KEPT_MS)
  end
end
