-- index_stage: keeps vectors that a job has bought, for a while.
-- KEYS  1 staged vectors of the job   2 job
-- ARGV  prefix, keep_s; from the second on: hash of a text, its vector, …
-- Returns 1   0 the job is no more: it was erased, and nothing may come after that
--@include base
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
local vectors = {}
for place = 2, #ARGV do vectors[place - 1] = ARGV[place] end
with_all('HSET', KEYS[1], vectors)
redis.call('EXPIRE', KEYS[1], a.keep_s)
return 1
