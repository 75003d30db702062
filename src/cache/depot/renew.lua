-- Holds a lease for longer. KEYS: it. ARGV: its token.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], 3000)
end
return 0
