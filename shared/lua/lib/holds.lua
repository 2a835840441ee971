-- holds: what all calls under way have reserved. docs/adr/0013-books.md.

-- By scope {tokens, nano-USD}; with `tenant` of its jobs' calls only. A call holds nothing but while its job is leased.
local function held_now(tenant)
  local sums = {}
  for _, job_id in ipairs(redis.call('ZRANGE', P .. 'leases', 0, -1)) do
    local entries = {}
    if not tenant or redis.call('HGET', P .. 'job:' .. job_id, 'tenant') == tenant then
      entries = redis.call('HGETALL', P .. 'open:' .. job_id)
    end
    for i = 1, #entries, 2 do
      if string.sub(entries[i], -2) ~= ':o' then
        local hold = cjson.decode(entries[i + 1])
        for _, id in ipairs(hold.h or {}) do
          local sum = sums[id] or {0, 0}
          sum[1], sum[2] = sum[1] + (hold.ht or 0), sum[2] + (hold.hn or 0)
          sums[id] = sum
        end
      end
    end
  end
  return sums
end
