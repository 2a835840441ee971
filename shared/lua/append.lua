-- append: a worker adds events to the logs of jobs that it holds, all in one call.
-- KEYS  none
-- ARGV  prefix, worker, jobs: a list of {
--         job, lease, batch (number of this write within the lease), events (list of {type, JSON object}),
--         progress (JSON, optional), seen (optional list of {call under way, output tokens seen of it})}
-- Returns per job the number of its last event, or -1 when its lease is lost or its record cannot be
--         read (nothing was written for it)
-- Events those given
--@include base
--@include hooks
local function append(job)
  local key = P .. 'job:' .. job.job
  local row = redis.call('HMGET', key, 'owner', 'lease', 'status', 'batch', 'seq')
  if row[1] ~= a.worker or row[2] ~= tostring(job.lease) or (row[3] ~= 'processing' and row[3] ~= 'cancelling') then
    return -1
  end
  -- A batch that is sent again, because its answer was lost with the connection, is written once.
  local mark = text[job.lease] .. ':' .. text[job.batch]
  local seq = tonumber(row[5])
  if not seq then return -1 end
  if row[4] == mark then return seq end
  local fields, first, warnings = {'batch', mark}, seq, {}
  for _, event in ipairs(job.events) do
    seq = seq + 1
    emit_as(job.job, seq, event[1], event[2])
    if event[1] == 'delta' then fields[3], fields[4] = 'text_seq', text[seq] end
    if event[1] == 'job.warning' then warnings[#warnings + 1] = {seq, event[2]} end
  end
  if job.progress then
    fields[#fields + 1] = 'progress'
    fields[#fields + 1] = job.progress
  end
  redis.call('HSET', key, 'seq', text[seq], unpack(fields))
  if #warnings > 0 then
    local wanted = redis.call('HMGET', key, 'hook', 'tenant')
    for _, warning in ipairs(wanted[1] and warnings or {}) do
      hook(job.job, wanted[2], wanted[1], warning[1], 'job.warning', warning[2])
    end
  end
  for _, call in ipairs(job.seen or {}) do
    local open = P .. 'open:' .. job.job
    if redis.call('HEXISTS', open, call[1]) == 1 then redis.call('HSET', open, call[1] .. ':o', text[call[2]]) end
  end
  if math.floor(seq / 100) > math.floor(first / 100) then trim(job.job) end
  return seq
end

local numbers = {}
for i, job in ipairs(a.jobs) do numbers[i] = append(job) end
return numbers
