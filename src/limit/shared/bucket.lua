-- A bucket as src/limit/bucket.rs has it, in Valkey's own numbers. A double holds whole numbers up to 2^53, so a moment
-- is two of them: whole microseconds, and what is over in parts of one, of which the rate's count make one. All is exact.
--
-- A bucket is {q, r: the arrival; s: the latest moment seen; e: when it was made; t: all that was ever taken; g: gaps}.

local GAPS_MAX = 64
local DIGIT = 32768
-- Some hundred years, in microseconds: nothing is owed for longer.
local OWED_MAX = 4e15

-- The whole part of a * m / d, and the rest; m and d below 2^37.
local function muldiv(a, m, d)
  local digits = {}
  while a > 0 do
    local digit = math.fmod(a, DIGIT)
    digits[#digits + 1] = digit
    a = (a - digit) / DIGIT
  end
  local whole, rest = 0, 0
  for place = #digits, 1, -1 do
    local sum = rest * DIGIT + digits[place] * m
    rest = math.fmod(sum, d)
    whole = whole * DIGIT + (sum - rest) / d
  end
  return whole, rest
end

-- The time that so much costs.
local function cost(b, amount)
  local q, r = muldiv(amount, b.per, b.count)
  if q > OWED_MAX then return OWED_MAX, 0 end
  return q, r
end

local function owed(b, now)
  if b.q < now or (b.q == now and b.r == 0) then return 0 end
  local whole, rest = muldiv(b.q - now, b.count, b.per)
  rest = rest + b.r
  local over = math.fmod(rest, b.per)
  whole = whole + (rest - over) / b.per
  if over > 0 then whole = whole + 1 end
  return whole
end

local function raise(b, now)
  if now > b.s then b.s = now end
  if b.q < b.s then b.q, b.r = b.s, 0 end
end

local function add(b, q, r)
  b.q, b.r = b.q + q, b.r + r
  if b.r >= b.count then b.q, b.r = b.q + 1, b.r - b.count end
  if b.q > b.s + OWED_MAX then b.q, b.r = b.s + OWED_MAX, 0 end
end

-- `now` is raised to what the bucket has seen.
local function fetch(key, count, per, now)
  local h = redis.call('HMGET', key, 'q', 'r', 's', 'e', 't', 'g', 'c', 'p')
  local b = {key = key, count = count, per = per, q = 0, r = 0, s = 0, e = now, t = 0, g = {}}
  if h[1] then
    b.q, b.r, b.s, b.e, b.t = tonumber(h[1]), tonumber(h[2]), tonumber(h[3]), tonumber(h[4]), tonumber(h[5])
    for begins, amount in string.gmatch(h[6] or '', '(%d+):(%d+)') do
      b.g[#b.g + 1] = {tonumber(begins), tonumber(amount)}
    end
    local was = {q = b.q, r = b.r, count = tonumber(h[7]), per = tonumber(h[8])}
    if was.count ~= count or was.per ~= per then
      -- Another shape: what is owed, in units of the bucket, costs what it costs there.
      local units = owed(was, math.max(now, b.s))
      b.s = math.max(now, b.s)
      b.q, b.r = b.s, 0
      add(b, cost(b, units))
    end
  end
  return b
end

-- It is as good as gone once it is full.
local function save(b, now)
  local gaps = {}
  for place, gap in ipairs(b.g) do gaps[place] = string.format('%.0f:%.0f', gap[1], gap[2]) end
  redis.call('HSET', b.key, 'q', string.format('%.0f', b.q), 'r', string.format('%.0f', b.r),
    's', string.format('%.0f', b.s), 'e', string.format('%.0f', b.e), 't', string.format('%.0f', b.t),
    'g', table.concat(gaps, ','), 'c', string.format('%.0f', b.count), 'p', string.format('%.0f', b.per))
  redis.call('PEXPIRE', b.key, string.format('%.0f', math.max(0, math.floor((b.q - now) / 1000)) + 60000))
end

-- Whether it would admit what costs (q, r), where a full one holds (bq, br).
local function admits(b, now, q, r, bq, br)
  now = math.max(now, b.s)
  local aq, ar = b.q, b.r
  if aq < now then aq, ar = now, 0 end
  aq, ar = aq + q, ar + r
  if ar >= b.count then aq, ar = aq + 1, ar - b.count end
  return aq < now + bq or (aq == now + bq and ar <= br)
end

local function take(b, now, amount, q, r)
  raise(b, now)
  add(b, q, r)
  b.t = b.t + amount
end

local function filled_up(b, now)
  local gaps = 0
  for _, gap in ipairs(b.g) do gaps = gaps + gap[2] end
  local filled = math.max(0, b.t - owed(b, math.max(now, b.s)) - gaps)
  while b.g[1] and b.g[1][1] <= filled do
    filled = filled + b.g[1][2]
    table.remove(b.g, 1)
  end
  return filled
end

-- Puts back what was lent and not used, or takes what was used beyond it.
local function settle(b, now, amount, taken, epoch, used)
  if used > amount then
    local q, r = cost(b, used - amount)
    return take(b, now, used - amount, q, r)
  end
  -- Of a bucket that has been full meanwhile, and begun anew, nothing is put back.
  if epoch ~= b.e then return end
  local unfilled = math.min(math.max(0, taken - filled_up(b, now)), amount - used)
  if unfilled == 0 then return end
  local q, r = cost(b, unfilled)
  b.q, b.r = b.q - q, b.r - r
  if b.r < 0 then b.q, b.r = b.q - 1, b.r + b.count end
  if b.q < 0 then b.q, b.r = 0, 0 end
  local begins, at = taken - unfilled, 1
  while b.g[at] and b.g[at][1] < begins do at = at + 1 end
  table.insert(b.g, at, {begins, unfilled})
  if #b.g > GAPS_MAX then
    local oldest = table.remove(b.g, 1)
    b.g[1] = {oldest[1], oldest[2] + b.g[1][2]}
  end
end
