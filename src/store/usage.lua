-- Adds what a replica's keys have used, once, and says which keys' days have changed since it last looked.
--
-- KEYS: the replica's mark. ARGV: the batch's number; the last change it has seen; the prefix; this month and the one
-- before (2026-11); for how many milliseconds all is kept; how many requests are told with it that had shares of budgets
-- (open.lua), and of each of these its key and place; of each row its day, key, name and six counts.
--
-- Returns the number of the last change, then of each key its name, its change, how many fields, and these.

local prefix, kept = ARGV[3], ARGV[6]
local last = prefix .. ':usage:change'
local changes = prefix .. ':usage:changes'

local function of_month(key, month) return prefix .. ':usage:key:' .. key .. ':' .. month end

if tonumber(ARGV[1]) > tonumber(redis.call('GET', KEYS[1]) or '0') then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', '86400000')
  local changed, opened, now, rows_at = {}, {}, clock('0'), 8 + 2 * tonumber(ARGV[7])
  for at = 8, rows_at - 1, 2 do
    local open = prefix .. ':open:' .. ARGV[at]
    told(open, ARGV[at + 1], now)
    opened[open] = true
  end
  for open in pairs(opened) do lapse(open, now) end
  for at = rows_at, #ARGV, 9 do
    local day, key, name = ARGV[at], ARGV[at + 1], ARGV[at + 2]
    local rows, days = prefix .. ':usage:rows:' .. day, of_month(key, string.sub(day, 1, 7))
    for n = 0, 5 do
      local count = ARGV[at + 3 + n]
      if count ~= '0' then
        redis.call('HINCRBY', rows, name .. '#' .. n, count)
        redis.call('HINCRBY', days, string.sub(day, 9, 10) .. '#' .. n, count)
        redis.call('HINCRBY', days, 'all#' .. n, count)
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

local said = {redis.call('GET', last) or '0'}
local news = redis.call('ZRANGEBYSCORE', changes, '(' .. ARGV[2], '+inf', 'WITHSCORES', 'LIMIT', '0', '100')
for at = 1, #news, 2 do
  local count = #said + 3
  said[#said + 1], said[#said + 2], said[#said + 3] = news[at], news[at + 1], 0
  for _, month in ipairs({ARGV[4], ARGV[5]}) do
    local days = redis.call('HGETALL', of_month(news[at], month))
    for field = 1, #days, 2 do
      said[#said + 1], said[#said + 2] = month .. '-' .. days[field], days[field + 1]
    end
  end
  said[count] = (#said - count) / 2
end
return said
