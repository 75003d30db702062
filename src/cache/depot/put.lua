-- Keeps an answer. Whoever has the lease of its making gives it back; that nobody keeps it is no longer so.
-- KEYS: the answer, the lease. ARGV: the answer, its time in ms, the lease's token.
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local held = redis.call('GET', KEYS[2])
if held == ARGV[3] or held == '-' then
  redis.call('DEL', KEYS[2])
end
return 1
