-- limits: how all limits of a tenant, a key, an end user and a prompt stand, at one instant. Writes nothing.
-- KEYS  1 tenant record
-- ARGV  prefix, tenant, key, user, prompt (`name` or `name@version`); the last three may be absent
-- Returns {now ms, end of the day ms, end of the month ms, jobs waiting, most that may, running, most that may or '-1',
--          '1' when running jobs fail at a hard limit else '0', a list of scopes, each
--          {kind, id, rates: list of {'requests' | 'tokens', per minute, burst, µs until it is full},
--           budgets: list of {period, 'tokens' | 'usd', soft or '', hard or '', used, reserved}}}; money in nano-USD
--@include base
--@include queue
--@include limits
local record = redis.call('HMGET', KEYS[1], 'max_queued', 'max_concurrent', 'policy')
local waiting, bound = queue_room(a.tenant, record[1])
local policy = policy_of(record[3])
local listed = {}
for _, scope in ipairs(scopes_of(policy, a.tenant, a.key, a.user, a.prompt)) do
  local rates, budgets = {}, {}
  if scope.policy then
    for _, field in ipairs({'r', 't'}) do
      local names = RATES[field]
      local rate = scope.policy[names[2]]
      if rate then
        local debt = math.max(0, tat_of(scope.id, field, rate) - NOW_US)
        rates[#rates + 1] = {names[1], int(rate), int(scope.policy[names[3]]), int(debt)}
      end
    end
    local book = scope.policy.b and book_of(scope.id)
    for _, budget in ipairs(scope.policy.b or {}) do
      for _, unit in ipairs(UNITS) do
        local hard, soft = budget[unit[2]], budget[unit[5]]
        if hard or soft then
          budgets[#budgets + 1] = {
            PERIODS[budget.p], unit[1], soft and int(soft) or '', hard and int(hard) or '', int(book[budget.p .. unit[3]]),
            int(book[unit[4]])}
        end
      end
    end
  end
  listed[#listed + 1] = {scope.kind, scope.id, rates, budgets}
end
return {NOW, int(WINDOW.turns.d), int(WINDOW.turns.m), int(waiting), int(bound),
  redis.call('HGET', P .. 'running', a.tenant) or '0', record[2] or '-1', policy and policy.fail and '1' or '0', listed}
