-- hook_list: one page of a tenant's deliveries, newest first. Looks at up to `scan`.
-- KEYS  1 the list: all of the tenant, those of a status, or those of a job
-- ARGV  prefix, tenant, high (lexical bound of ids, as ZREVRANGEBYLEX takes it), limit, scan, fields, status (optional)
-- Returns {cursor: last id looked at or '', '1' when there may be more, {values} per delivery}
--@include base
local rows, last, seen, high = {}, '', 0, a.high
while true do
  local ids = redis.call('ZREVRANGEBYLEX', KEYS[1], high, '-', 'LIMIT', 0, 200)
  for _, id in ipairs(ids) do
    if #rows >= a.limit or seen >= a.scan then return {last, '1', rows} end
    local values = redis.call('HMGET', P .. 'delivery:' .. a.tenant .. ':' .. id, 'status', unpack(a.fields))
    local status = table.remove(values, 1)
    if status and (not a.status or status == a.status) then rows[#rows + 1] = values end
    seen, last = seen + 1, id
  end
  if #ids < 200 then return {last, '0', rows} end
  high = '(' .. last
end
