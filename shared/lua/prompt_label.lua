-- prompt_label: moves a label of a prompt, takes it back to where it was before, or removes it.
-- KEYS  1 the prompt
-- ARGV  prefix, owner, name, label, what ('move' | 'rollback' | 'remove'), version (of a move), protected (bool, optional),
--       expected (optional: the label's `rev` as text, '*' when it must be there, '-' when it must not), may_promote
--       (bool), by, most_labels, audit (its entry; this script says from where to where), note (optional)
-- Returns {'ok', the label as JSON or '' when it is gone}   {'none'} no such prompt
--         {'no_version', how many there are}   {'no_label'}   {'stale', the label's rev or ''} not what was expected
--         {'protected'} it is, and the caller may not   {'nothing_before'}   {'full'} too many labels
--@include base
--@include audit
--@include prompts
if not is_there(KEYS[1]) then return {'none'} end
local before = label_of(KEYS[1], a.label)
local rev = before and int(before.rev) or ''
if a.expected then
  local fits = a.expected == rev or (a.expected == '*' and before) or (a.expected == '-' and not before)
  if not fits then return {'stale', rev} end
end
if not before and a.what ~= 'move' then return {'no_label'} end
local guarded = before and before.protected
if (guarded or a.protected) and not a.may_promote then return {'protected'} end

local function told(member, old, new)
  return '"' .. member .. '":{' .. (old and '"old":' .. old .. (new and ',' or '') or '') .. (new and '"new":' .. new or '') .. '}'
end

local written, details = '', {}
if a.what == 'remove' then
  redis.call('HDEL', KEYS[1], 'l:' .. a.label)
  redis.call('HSET', KEYS[1], 'updated_ms', NOW)
  details[1] = told('version', int(before.version))
elseif a.what == 'rollback' then
  local to = table.remove(before.past)
  if not to then return {'nothing_before'} end
  details[1] = told('version', int(before.version), int(to))
  written = write_label(KEYS[1], a.label, {
    version = to, rev = redis.call('HINCRBY', KEYS[1], 'rev', 1), by = a.by, protected = before.protected, past = before.past})
else
  local versions = tonumber(redis.call('HGET', KEYS[1], 'versions'))
  if a.version > versions then return {'no_version', int(versions)} end
  if not before then
    local labels = 0
    for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
      if string.sub(field, 1, 2) == 'l:' then labels = labels + 1 end
    end
    if labels >= a.most_labels then return {'full'} end
  end
  if not before or before.version ~= a.version then
    details[1] = told('version', before and int(before.version), int(a.version))
  end
  if a.protected ~= nil and a.protected ~= (guarded or false) then
    details[#details + 1] = told('protected', tostring(guarded or false), tostring(a.protected))
  end
  -- The same again changes nothing, and is no entry.
  if #details == 0 then return {'ok', redis.call('HGET', KEYS[1], 'l:' .. a.label)} end
  written = move_label(KEYS[1], a.label, a.version, a.by, a.protected)
end
details[#details + 1] = told('label', cjson.encode(a.label), a.what ~= 'remove' and cjson.encode(a.label) or nil)
if a.note then details[#details + 1] = told('note', nil, cjson.encode(a.note)) end
note_prompt(a.owner, a.name, a.audit, '{' .. table.concat(details, ',') .. '}')
return {'ok', written}
