-- search_erase: takes searches out of the log, or what concerns a document out of them; and the texts out of the jobs
-- behind them that have ended. Safe to repeat.
-- KEYS  1 index in which the searches were found   2 final jobs by the time of removal
-- ARGV  prefix, tenant, kind (what ids of searches begin with), mark_ms (life of the mark of one that was erased),
--       searches: list of {id, and for one that stays: rev, record, head, docs, chunks (whose votes go)},
--       jobs: list of {id, whole (bool: its search was erased)} of which only the texts are taken
-- Returns {how many were there, {id, '1' when its search was erased, … of each job that has not ended}}
--@include base
--@include searches
local ENDED = {complete = true, failed = true, cancelled = true, expired = true}
local done, running = 0, {}

local function let_go(job_id, whole)
  local key = P .. 'job:' .. job_id
  local row = redis.call('HMGET', key, 'tenant', 'status')
  if row[1] ~= a.tenant then return end
  if not ENDED[row[2]] then
    running[#running + 1] = job_id
    running[#running + 1] = whole and '1' or '0'
    return
  end
  redis.call('HDEL', key, 'result')
  -- The last event, which holds no text, stays: readers learn by it that nothing follows.
  redis.call('XTRIM', P .. 'log:' .. job_id, 'MAXLEN', 1)
  redis.call('UNLINK', P .. 'journal:' .. job_id)
  -- The query and the user stand in its record: that goes at the next sweep.
  if whole then redis.call('ZADD', KEYS[2], 'XX', NOW, job_id) end
end

local function erase(id)
  local job_id = forget(id)
  redis.call('ZREM', KEYS[1], id)
  if not job_id then return end
  done = done + 1
  -- A worker that writes it late finds that it was there.
  redis.call('HSET', P .. 'search:' .. id, 'tenant', a.tenant)
  redis.call('PEXPIRE', P .. 'search:' .. id, a.mark_ms)
  let_go(job_id, true)
end

local function blank(search)
  local key = P .. 'search:' .. search.id
  local row = redis.call('HMGET', key, 'tenant', 'rev', 'votes', 'job')
  if row[1] == a.tenant and row[2] then
    if row[2] ~= search.rev then return end
    local votes = cjson.decode(row[3] or '{}')
    for _, chunk in ipairs(search.chunks) do votes[chunk] = nil end
    redis.call('HSET', key, 'record', search.record, 'head', search.head, 'docs', search.docs, 'rev', int(row[2] + 1),
      'votes', cjson.encode(votes))
    done = done + 1
    let_go(row[4], false)
  end
  redis.call('ZREM', KEYS[1], search.id)
end

for _, search in ipairs(a.searches) do
  if search.record then blank(search) else erase(search.id) end
end
for _, job in ipairs(a.jobs) do let_go(job.id, job.whole) end
return {done, running}
