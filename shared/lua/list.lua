-- list: one page of a tenant's jobs, newest first. Looks at up to `scan` jobs, so that a filter that matches
-- little cannot hold Redis up; the caller goes on from the cursor.
-- KEYS  1 index of the tenant's jobs
-- ARGV  prefix, high, low (lexical bounds of ids, as ZREVRANGEBYLEX takes them), limit, scan, fields,
--       filter: map of record field → wanted value; metadata: map of key → wanted value
-- Returns {cursor: last id looked at or '', '1' when there may be more, {values} per job}
--@include base
local rows, last, seen = {}, '', 0
local high = a.high
while true do
  local ids = redis.call('ZREVRANGEBYLEX', KEYS[1], high, a.low, 'LIMIT', 0, 200)
  for _, id in ipairs(ids) do
    if #rows >= a.limit or seen >= a.scan then return {last, '1', rows} end
    local key = P .. 'job:' .. id
    local fits = true
    for field, wanted in pairs(a.filter) do
      if redis.call('HGET', key, field) ~= wanted then fits = false end
    end
    if fits and next(a.metadata) then
      local metadata = cjson.decode(redis.call('HGET', key, 'metadata') or '{}')
      for name, wanted in pairs(a.metadata) do
        if metadata[name] ~= wanted then fits = false end
      end
    end
    if fits then
      local values = redis.call('HMGET', key, unpack(a.fields))
      if values[1] then rows[#rows + 1] = values end
    end
    seen = seen + 1
    last = id
  end
  if #ids < 200 then return {last, '0', rows} end
  high = '(' .. last
end
