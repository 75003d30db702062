-- The answer, if it is kept; else who makes it. KEYS: the answer, the lease. ARGV: the lease's token, or nothing where
-- it is only looked at; `anew` where what is kept is not wanted.
-- {1, its time in ms, the answer} | {2}: the lease is yours | {3}: it is another's | {0}: nobody makes it, or each its own
if ARGV[2] == '' then
  local kept = redis.pcall('GET', KEYS[1])
  if type(kept) == 'string' then
    return {1, redis.call('PTTL', KEYS[1]), kept}
  elseif kept then
    -- Something else of somebody else's.
    return {1, -1, ''}
  end
end
local held = redis.call('GET', KEYS[2])
if held == '-' then
  return {0, 0, ''}
elseif held then
  return {3, 0, ''}
elseif ARGV[1] == '' then
  return {0, 0, ''}
end
redis.call('SET', KEYS[2], ARGV[1], 'PX', 3000)
return {2, 0, ''}
