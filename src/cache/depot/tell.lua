-- Takes a purge in, and says its number. KEYS: the table, the highest number. ARGV: `next` where it is new and comes
-- after all others, `same` where its number is known elsewhere; its name and number; the name of a purge of all; how many
-- names there may be.
local last = tonumber(redis.call('GET', KEYS[2]) or '0')
local name, number = ARGV[2], tonumber(ARGV[3])
if ARGV[1] == 'next' then
  number = math.max(number, last + 1)
else
  number = math.max(number, tonumber(redis.call('HGET', KEYS[1], name) or '0'))
end
local text = string.format('%.0f', number)
local is_new = redis.call('HEXISTS', KEYS[1], name) == 0
if is_new and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[5]) then
  name = ARGV[4]
end
if name == ARGV[4] and ARGV[1] == 'next' then
  redis.call('DEL', KEYS[1])
end
redis.call('HSET', KEYS[1], name, text)
redis.call('SET', KEYS[2], string.format('%.0f', math.max(last, number)))
redis.call('PEXPIRE', KEYS[1], 2592000000)
redis.call('PEXPIRE', KEYS[2], 2592000000)
return number
