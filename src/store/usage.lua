-- Adds what a replica's keys have used, once, and says which keys' days have changed since it last looked.
--
-- KEYS: the replica's mark. ARGV: the batch's number; the last change it has seen; the prefix; this month and the one
-- before (2026-11); for how many milliseconds all is kept; of each row its day, key, name and six counts.
--
-- Returns the number of the last change, then of each key its name, its change, how many fields, and these.

local prefix, kept = ARGV[3], ARGV[6]
local last = prefix .. ':usage:change'
local changes = prefix .. ':usage:changes'

local function of_month(key, month) return prefix .. ':usage:key:' .. key .. ':' .. month end

if tonumber(ARGV[1]) > tonumber(redis.call('GET', KEYS[1]) or '0') then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', '86400000')
  local changed = {}
  for at = 7, #ARGV, 9 do
    local day, key, name = ARGV[at], ARGV[at + 1], ARGV[at + 2]
    local rows, days = prefix .. ':usage:rows:' .. day, of_month(key, string.sub(day, 1, 7))
    for n = 0, 5 do
      local count = ARGV[at + 3 + n]
      if count ~= '0' then
        redis.call('HINCRBY', rows, name .. '#' .. n, count)
        redis.call('HINCRBY', days, string.sub(day, 9, 10) .. '#' .. n, count)
      end
    end
    redis.call('SADD', prefix .. ':usage:days', day)
    redis.call('PEXPIRE', rows, kept)
    redis.call('PEXPIRE', days, kept)
    changed[key] = true
  end
  for key in pairs(changed) do
    redis.call('ZADD', changes, redis.call('INCR', last), key)
  end
end

local told = {redis.call('GET', last) or '0'}
local news = redis.call('ZRANGEBYSCORE', changes, '(' .. ARGV[2], '+inf', 'WITHSCORES', 'LIMIT', '0', '100')
for at = 1, #news, 2 do
  local count = #told + 3
  told[#told + 1], told[#told + 2], told[#told + 3] = news[at], news[at + 1], 0
  for _, month in ipairs({ARGV[4], ARGV[5]}) do
    local days = redis.call('HGETALL', of_month(news[at], month))
    for field = 1, #days, 2 do
      told[#told + 1], told[#told + 2] = month .. '-' .. days[field], days[field + 1]
    end
  end
  told[count] = (#told - count) / 2
end
return told
