-- index_switch: makes a version of an index the current one, when it has every document of the current one in its present
-- content; what was current becomes the previous one, and what was that is dropped. Safe to repeat.
-- KEYS  1 collection   2 index of the current version   3 index of the other   4 idempotency key (any name without one)
-- ARGV  prefix, current (the version that KEYS 2 belongs to), version (of KEYS 3), worker, lease, job (its id; absent: the
--       API asks, and none builds), idem_body (absent: no key)
-- Returns {'ok', version that is to be dropped or '', '1' where it was done before with this idempotency key}
--         {'missing', document ids … (at most 500)}
--         {'moved', current version} another is current by now   {'no_version'}   {'lost'}
--@include base
if a.job then
  local row = redis.call('HMGET', P .. 'job:' .. a.job, 'owner', 'lease', 'status')
  if row[1] ~= a.worker or row[2] ~= tostring(a.lease) or (row[3] ~= 'processing' and row[3] ~= 'cancelling') then
    return {'lost'}
  end
end
local again = replay(KEYS[4])
if again then
  again[3] = '1'
  return again
end
local row = redis.call('HMGET', KEYS[1], 'current', 'previous', 'building', 'v:' .. int(a.version))
if not row[4] then return {'no_version'} end
if row[1] == int(a.version) then return {'ok', ''} end
if row[1] ~= int(a.current) then return {'moved', row[1]} end
local missing = {'missing'}
local entries = redis.call('HGETALL', KEYS[2])
for i = 1, #entries, 2 do
  local there = redis.call('HGET', KEYS[3], entries[i])
  if not there or string.match(there, '^%d+') ~= string.match(entries[i + 1], '^%d+') then
    missing[#missing + 1] = entries[i]
    if #missing > 500 then break end
  end
end
if #missing > 1 then return missing end
redis.call('HSET', KEYS[1], 'current', int(a.version), 'previous', row[1])
if row[3] == int(a.version) then redis.call('HDEL', KEYS[1], 'building', 'builder') end
local drop = row[2]
if not drop or drop == int(a.version) then drop = '' end
local reply = {'ok', drop}
remember(KEYS[4], reply)
return reply
