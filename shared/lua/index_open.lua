-- index_open: a collection as it is, made at its first use; with `building` a further version is begun beside the current
-- one, unless one is being built already. Safe to repeat (by the same job).
-- KEYS  1 collection   2 names of the tenant's collections   3 tenant record
-- ARGV  prefix, name, spec (JSON of the version that is made, without its number), job (id of the job that builds it;
--       with `building`), building (bool)
-- Returns {current version, building version or 0, the collection's fields in turn}
--         {'busy', job id} another job builds a version     {'no_tenant'} the tenant was deleted
--@include base
local tenant = redis.call('HMGET', KEYS[3], 'id', 'deleting')
if not tenant[1] or tenant[2] then return {'no_tenant'} end
local function make(state)
  local version = redis.call('HINCRBY', KEYS[1], 'versions', 1)
  local spec = '{"version":' .. int(version) .. ',"createdMs":' .. NOW .. ',' .. string.sub(a.spec, 2)
  redis.call('HSET', KEYS[1], 'v:' .. int(version), spec, state, int(version))
  return version
end
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[1], 'created_ms', NOW)
  redis.call('ZADD', KEYS[2], 0, a.name)
  make('current')
elseif a.building then
  local at = redis.call('HGET', KEYS[1], 'building')
  if at then
    local owner = redis.call('HGET', KEYS[1], 'builder')
    if owner ~= a.job then
      local status = owner and redis.call('HGET', P .. 'job:' .. owner, 'status')
      if status and status ~= 'complete' and status ~= 'cancelled' and status ~= 'expired' and status ~= 'failed' then
        return {'busy', owner}
      end
    end
  end
  if not at or redis.call('HGET', KEYS[1], 'builder') ~= a.job then
    make('building')
    redis.call('HSET', KEYS[1], 'builder', a.job)
  end
end
local row = redis.call('HMGET', KEYS[1], 'current', 'building')
return {row[1] or '0', row[2] or '0', redis.call('HGETALL', KEYS[1])}
