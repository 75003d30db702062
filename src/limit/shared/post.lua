-- What a replica tells afterwards, in batches; each counts once, however often it is told.
--
-- KEYS: the replica's mark, then one for each item. ARGV: the time or 0; until when this is to be told, or 0; the batch's
-- number; for how many microseconds a place is let; of each item its kind and six fields:
--   s  settles a loan: count, per, what was lent, what had been taken with it, e, what was used (six fields)
--   c  charges what was admitted without asking, as far as there is some: count, per, amount, what it holds (2), -
--   l  leaves a set: the place's name
--   k  keeps a place: the same
--   h  has of a key's budgets: the place's name, requests, tokens, the day or nothing
--   f  has no more of them: the place's name
--
-- Returns the time where it is too late, 0 where the batch counted before, else 1.

local now, valid, number, lent = clock(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
if number <= tonumber(redis.call('GET', KEYS[1]) or '0') then return 0 end
if valid > 0 and now > valid then return now end
redis.call('SET', KEYS[1], ARGV[3], 'PX', '86400000')
local at = 5
for place = 2, #KEYS do
  local key, kind, f = KEYS[place], ARGV[at], {}
  for field = 1, 6 do f[field] = ARGV[at + field] end
  at = at + 7
  if kind == 'l' then
    redis.call('ZREM', key, f[1])
  elseif kind == 'k' then
    redis.call('ZADD', key, string.format('%.0f', now + lent), f[1])
    redis.call('PEXPIRE', key, string.format('%.0f', math.ceil(lent / 1000) + 60000))
  elseif kind == 'h' then
    hold(key, f[1], tonumber(f[2]), tonumber(f[3]), f[4], now, lent)
  elseif kind == 'f' then
    let_go(key, f[1])
  else
    for field = 1, 6 do f[field] = tonumber(f[field]) end
    local b = fetch(key, f[1], f[2], now)
    if kind == 's' then
      settle(b, now, f[3], f[4], f[5], f[6])
    else
      local q, r = cost(b, f[3])
      local moment = math.max(now, b.s)
      local had = {b.q, b.r}
      take(b, now, f[3], q, r)
      -- No deeper than empty, unless it was before.
      if b.q > moment + f[4] or (b.q == moment + f[4] and b.r > f[5]) then
        b.q, b.r = moment + f[4], f[5]
        if had[1] > b.q or (had[1] == b.q and had[2] > b.r) then b.q, b.r = had[1], had[2] end
      end
    end
    save(b, now)
  end
end
return 1
