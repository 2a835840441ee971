-- base: arguments, time, events. Included by every script.
-- Every script gets ARGV[1], a MessagePack map of named arguments; `a.prefix` starts every key.
local a = cmsgpack.unpack(ARGV[1])
local P = a.prefix
local time = redis.call('TIME')
-- Milliseconds. Lua prints numbers above 1e14 in exponent form: pass numbers to redis.call as they are, or int() them.
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function int(number)
  return string.format('%.0f', number)
end

-- A log longer than this loses its oldest events; readers are told by a `gap` event.
local MAX_LOG = 100000

local NOW = int(now)

-- The same, remembered: most numbers of a call (leases, attempts, event numbers) are the same few.
local text = setmetatable({}, {__index = function(known, number)
  local written = int(number)
  known[number] = written
  return written
end})

-- A command with a list of any length: Lua takes only so many arguments at a time.
local function with_all(command, key, list)
  for first = 1, #list, 1000 do
    redis.call(command, key, unpack(list, first, math.min(first + 999, #list)))
  end
end

-- Appends event number `seq` to the job's log and publishes it. The caller writes `seq` into the record.
local function emit_as(job_id, seq, kind, data)
  redis.call('XADD', P .. 'log:' .. job_id, text[seq] .. '-0', 't', kind, 'a', NOW, 'd', data)
  redis.call('PUBLISH', P .. 'ev:' .. job_id, text[seq] .. ' ' .. NOW .. ' ' .. kind .. ' ' .. data)
end

-- Takes the oldest events of a log that has become too long.
local function trim(job_id)
  redis.call('XTRIM', P .. 'log:' .. job_id, 'MAXLEN', '~', MAX_LOG)
end

-- Appends one event to the job's log and publishes it. `data` is a JSON object as text. Returns its number.
local function emit(job_id, kind, data)
  local seq = redis.call('HINCRBY', P .. 'job:' .. job_id, 'seq', 1)
  emit_as(job_id, seq, kind, data)
  if seq % 100 == 0 then trim(job_id) end
  return seq
end

local CROCKFORD = '0123456789ABCDEFGHJKMNPQRSTVWXYZ'

-- The ten characters of a ULID that carry `at` (ms), or `now`.
local function ulid_time(at)
  local text, rest = '', at or now
  for _ = 1, 10 do
    local digit = rest % 32
    text = string.sub(CROCKFORD, digit + 1, digit + 1) .. text
    rest = (rest - digit) / 32
  end
  return text
end

-- The 26 characters of a ULID of this moment. The first two after the milliseconds count the microseconds, so that ids
-- made one after the other sort so within a millisecond too; of the 80 bits of chance in `random`, 70 stay.
local function ulid_now(random)
  local micros = time[2] % 1000
  local high, low = math.floor(micros / 32), micros % 32
  return ulid_time() .. string.sub(CROCKFORD, high + 1, high + 1) .. string.sub(CROCKFORD, low + 1, low + 1) ..
    string.sub(random, 3)
end

-- Idempotency: returns nil when the key is new (or none was sent), else the stored reply or {'mismatch'}.
local function replay(key)
  if not a.idem_body then return nil end
  local body = redis.call('HGET', key, 'body')
  if not body then return nil end
  if body ~= a.idem_body then return {'mismatch'} end
  return cmsgpack.unpack(redis.call('HGET', key, 'reply'))
end

-- Remembers the reply of this request for 24 hours.
local function remember(key, reply)
  if not a.idem_body then return end
  redis.call('HSET', key, 'body', a.idem_body, 'reply', cmsgpack.pack(reply))
  redis.call('EXPIRE', key, 86400)
end
