-- The highest number of a purge, and all purges if it is another than was read before. KEYS: the table, the highest
-- number. ARGV: what was read before.
local last = redis.call('GET', KEYS[2]) or '0'
local month = 2592000000
if last ~= '0' and redis.call('PTTL', KEYS[2]) < month / 2 then
  redis.call('PEXPIRE', KEYS[1], month)
  redis.call('PEXPIRE', KEYS[2], month)
end
local said = {last}
if last ~= ARGV[1] then
  for _, text in ipairs(redis.call('HGETALL', KEYS[1])) do
    said[#said + 1] = text
  end
end
return said
