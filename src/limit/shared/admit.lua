-- All limits of one request at once: takes from every bucket and enters every set of those at once, or from none.
--
-- KEYS: the buckets, then the sets. ARGV: the time or 0; until when this is to be ruled on, or 0; whether buckets are taken from; for how many microseconds a
-- place is let; the place's name; how many buckets; of each count, per, the amount, its cost (2), what it holds (2);
-- of each set how many may be there.
--
-- Returns the time alone where it is too late; else the time; 0: admitted, -1: a bucket did not, n: the n-th set is full; of each bucket q, r, s, e, t.

local now, valid = clock(ARGV[1]), tonumber(ARGV[2])
if valid > 0 and now > valid then return {now} end
local takes, lent, member, buckets = ARGV[3] == '1', tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
local at, told, all, verdict = 7, {now, 0}, {}, 0
for place = 1, buckets do
  local n = {}
  for field = 1, 7 do n[field] = tonumber(ARGV[at + field - 1]) end
  at = at + 7
  local b = fetch(KEYS[place], n[1], n[2], now)
  all[place] = {b, n[3], n[4], n[5]}
  if not admits(b, now, n[4], n[5], n[6], n[7]) then verdict = -1 end
end
if verdict == 0 then
  for place = buckets + 1, #KEYS do
    redis.call('ZREMRANGEBYSCORE', KEYS[place], '-inf', string.format('%.0f', now))
    if redis.call('ZCARD', KEYS[place]) >= tonumber(ARGV[at + place - buckets - 1]) then
      verdict = place - buckets
      break
    end
  end
end
if verdict == 0 then
  for place = buckets + 1, #KEYS do
    redis.call('ZADD', KEYS[place], string.format('%.0f', now + lent), member)
    redis.call('PEXPIRE', KEYS[place], string.format('%.0f', math.ceil(lent / 1000) + 60000))
  end
end
for _, it in ipairs(all) do
  local b = it[1]
  if verdict == 0 and takes then
    take(b, now, it[2], it[3], it[4])
    save(b, now)
  end
  for _, value in ipairs({b.q, b.r, b.s, b.e, b.t}) do told[#told + 1] = value end
end
told[2] = verdict
return told
