-- Tells what is new and says what others told. KEYS: the stream. ARGV: up to where it was read before; what is new, or
-- nothing. The last 2048 or so stay for an hour, for those who begin.
if ARGV[2] ~= '' then
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', 2048, '*', 'sent', ARGV[2])
  redis.call('PEXPIRE', KEYS[1], 3600000)
end
local said = {}
for _, row in ipairs(redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', 256)) do
  said[#said + 1] = row[1]
  said[#said + 1] = row[2][2]
end
return said
