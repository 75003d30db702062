-- Gives a lease back. KEYS: it. ARGV: its token; for how many ms everybody makes such an answer alone, since none is kept.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
elseif ARGV[2] == '0' then
  return redis.call('DEL', KEYS[1])
end
redis.call('SET', KEYS[1], '-', 'PX', ARGV[2])
return 1
