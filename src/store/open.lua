-- What requests have of their keys' budgets until what they used is told by the ledger (usage.lua).
--
-- Of each key a hash: each request's share by its place, "requests tokens day", without a day while it is under way; and
-- the sums of these: `=#r` and `=#t` of what is reserved, `=2026-11-30#r` and `=2026-11#r` … of what was used. Beside it
-- a sorted set (its name ends in a control character, which no key's name has), until when each share stands unless it
-- is renewed. One that was told stays in that for a while, so that
-- what comes later does not bring it back.

-- Longer than what a replica tells is under way, in microseconds.
local TOLD_FOR = 10000000

-- By the server's clock, unless a test tells the time.
local function clock(told)
  if told ~= '0' then return tonumber(told) end
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000000 + tonumber(t[2])
end

local function whole(number) return string.format('%.0f', number) end

local function sum(open, name, by)
  if by ~= 0 and redis.call('HINCRBY', open, name, whole(by)) == 0 then redis.call('HDEL', open, name) end
end

local function count(open, requests, tokens, day)
  local names = day == '' and {''} or {day, string.sub(day, 1, 7)}
  for _, name in ipairs(names) do
    sum(open, '=' .. name .. '#r', requests)
    sum(open, '=' .. name .. '#t', tokens)
  end
end

-- Of whoever holds nothing, nothing.
local function let_go(open, place)
  local share = redis.call('HGET', open, place)
  if not share then return end
  local requests, tokens, day = string.match(share, '^(%d+) (%d+) (.*)$')
  count(open, -tonumber(requests), -tonumber(tokens), day)
  redis.call('HDEL', open, place)
end

local function stands_until(open, place, now, lent)
  redis.call('ZADD', open .. '\31ends', whole(now + lent), place)
  local kept = whole(math.ceil(lent / 1000) + 60000)
  redis.call('PEXPIRE', open .. '\31ends', kept)
  redis.call('PEXPIRE', open, kept)
end

-- In place of what it had, unless it was told.
local function hold(open, place, requests, tokens, day, now, lent)
  local share = redis.call('HEXISTS', open, place) == 1
  if not share and redis.call('ZSCORE', open .. '\31ends', place) then return end
  let_go(open, place)
  redis.call('HSET', open, place, whole(requests) .. ' ' .. whole(tokens) .. ' ' .. day)
  count(open, requests, tokens, day)
  stands_until(open, place, now, lent)
end

-- What it had stands in the ledger now.
local function told(open, place, now)
  let_go(open, place)
  stands_until(open, place, now, TOLD_FOR)
end

-- Those whose time is over, of replicas that were killed: some of them, since meanwhile nobody else is answered. Each
-- request looks, and adds one.
local function lapse(open, now)
  for _, place in ipairs(redis.call('ZRANGEBYSCORE', open .. '\31ends', '-inf', whole(now), 'LIMIT', '0', '100')) do
    let_go(open, place)
    redis.call('ZREM', open .. '\31ends', place)
  end
end

-- Requests and tokens of the day, of the month, and reserved; `month` is where the ledger tells that.
local function spent(open, month, day)
  local function numbers(key, ...)
    local found = redis.call('HMGET', key, ...)
    for place = 1, #found do found[place] = tonumber(found[place] or '0') end
    return found
  end
  local this, of = string.sub(day, 9, 10), string.sub(day, 1, 7)
  local t = numbers(month, this .. '#0', this .. '#1', this .. '#2', 'all#0', 'all#1', 'all#2')
  local o = numbers(open, '=' .. day .. '#r', '=' .. day .. '#t', '=' .. of .. '#r', '=' .. of .. '#t', '=#r', '=#t')
  return {t[1] + o[1], t[2] + t[3] + o[2], t[4] + o[3], t[5] + t[6] + o[4], o[5], o[6]}
end
