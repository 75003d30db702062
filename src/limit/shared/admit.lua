-- All limits of one request at once: takes from every bucket, enters every set of those at once and reserves within every
-- budget, or none of these.
--
-- KEYS: the buckets, then the sets; where there are budgets, what requests have of them, and the key's month in the
-- ledger. ARGV: the time or 0; until when this is to be ruled on, or 0; whether buckets are taken from; for how many
-- microseconds a place is let; the place's name; how many buckets; the day; how many budgets; how many tokens they are
-- asked for; of each bucket count, per, the amount, its cost (2), what it holds (2); of each set how many may be there;
-- of each budget r or t, d or m, and how much it is.
--
-- Returns the time alone where it is too late; else the time; 0: admitted, -1: a bucket or a budget did not, n: the n-th
-- set is full; of each bucket q, r, s, e, t; where there are budgets what is spent and reserved (six).

local now, valid = clock(ARGV[1]), tonumber(ARGV[2])
if valid > 0 and now > valid then return {now} end
local takes, lent, member, buckets = ARGV[3] == '1', tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
local day, budgets, tokens = ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9])
local sets = #KEYS - buckets - (budgets > 0 and 2 or 0)
local at, told, all, verdict = 10, {now, 0}, {}, 0
for place = 1, buckets do
  local n = {}
  for field = 1, 7 do n[field] = tonumber(ARGV[at + field - 1]) end
  at = at + 7
  local b = fetch(KEYS[place], n[1], n[2], now)
  all[place] = {b, n[3], n[4], n[5]}
  if not admits(b, now, n[4], n[5], n[6], n[7]) then verdict = -1 end
end
local open, used = KEYS[buckets + sets + 1], {}
if budgets > 0 then
  lapse(open, now)
  used = spent(open, KEYS[buckets + sets + 2], day)
  for place = at + sets, #ARGV, 3 do
    local span, what = ARGV[place + 1] == 'd' and 0 or 2, ARGV[place] == 'r' and 1 or 2
    local asked = what == 1 and 1 or tokens
    if used[span + what] + used[4 + what] + asked > tonumber(ARGV[place + 2]) then verdict = -1 end
  end
end
if verdict == 0 then
  for place = 1, sets do
    local set = KEYS[buckets + place]
    redis.call('ZREMRANGEBYSCORE', set, '-inf', whole(now))
    if redis.call('ZCARD', set) >= tonumber(ARGV[at + place - 1]) then
      verdict = place
      break
    end
  end
end
if verdict == 0 then
  for place = buckets + 1, buckets + sets do
    redis.call('ZADD', KEYS[place], whole(now + lent), member)
    redis.call('PEXPIRE', KEYS[place], whole(math.ceil(lent / 1000) + 60000))
  end
  if budgets > 0 then hold(open, member, 1, tokens, '', now, lent) end
end
for _, it in ipairs(all) do
  local b = it[1]
  if verdict == 0 and takes then
    take(b, now, it[2], it[3], it[4])
    save(b, now)
  end
  for _, value in ipairs({b.q, b.r, b.s, b.e, b.t}) do told[#told + 1] = value end
end
for _, value in ipairs(used) do told[#told + 1] = value end
told[2] = verdict
return told
