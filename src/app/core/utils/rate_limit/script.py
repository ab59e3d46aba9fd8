"""The exact sliding window, as a Lua script: all windows of a rule are decided together, by the server's clock.

Up to 128 requests a window is a log: a sorted set with a member for each request, its time. Above, it is 60 sub-windows
in one hash, each with its count and the time of its last request: they leave together, when that one does, so that
there are never more than the limit in any period, and again the limit after one.

When a limit passes 128, its requests are carried over into the other form once there are few enough. When a rule gets
another period, its new window begins with the requests that its former windows recorded within that period: a string
beside the windows lists the periods that were counted last.

Times are in microseconds. Refused requests are not counted.
"""

from typing import Final

from app.core.utils.redis_link import Script

LONGEST_LOG: Final = 128  # requests; also the most that Redis/Valkey keeps of a sorted set in its compact form
SUB_WINDOWS: Final = 60

# KEYS: for each rule its list of periods, then a log and a hash for each window.
# ARGV: the cost; for each rule its periods as its keys spell them, with spaces between, the number of its windows, and
# the limit and the period of each.
# Returns how long to wait, 0 when it was let through; then for each window how much is used, and when some is free.
DECIDE: Final = Script(
    # The first line has a full server refuse it at once, and not in the middle. Redis 7, or any Valkey.
    "#!lua\n"
    f"local LONGEST_LOG, SUB_WINDOWS = {LONGEST_LOG}, {SUB_WINDOWS}\n"
    """
local time = redis.call('TIME')
local clock = tonumber(time[1]) * 1000000 + tonumber(time[2])
local cost = tonumber(ARGV[1])

local function text(number) return string.format('%.0f', number) end
local function expire(key, last, period) redis.call('PEXPIRE', key, text(math.ceil((last - clock + period) / 1000))) end
local function parts(sub) return tonumber(string.match(sub, '^%d+')), tonumber(string.match(sub, '%d+$')) end

-- What a window has recorded, oldest first: {requests, time of the last, time not after the first}, and the sum.
local function recorded(log, hash, period)
  local found, sum = {}, 0
  for _, member in ipairs(redis.call('ZRANGE', log, 0, -1)) do
    local at = tonumber(member)
    found[#found + 1], sum = {1, at, at}, sum + 1
  end
  local fields = redis.call('HGETALL', hash)
  for i = 1, #fields, 2 do
    if string.find(fields[i], '^%d') then
      local count, last = parts(fields[i + 1])
      found[#found + 1], sum = {count, last, tonumber(fields[i]) * period / SUB_WINDOWS}, sum + count
    end
  end
  table.sort(found, function(one, other) return one[2] < other[2] end)
  return found, sum
end

local function write_log(log, hash, period, found)  -- no request leaves earlier than it did
  local words, at = {'ZADD', log}, 0
  for _, sub in ipairs(found) do
    for _ = 1, sub[1] do
      at = math.max(sub[2], at + 1)
      words[#words + 1], words[#words + 2] = text(at), text(at)
    end
  end
  redis.call('DEL', log, hash)
  redis.call(unpack(words))
  expire(log, at, period)
end

local function write_sub_windows(log, hash, period, found)
  local counts, used = {}, 0
  redis.call('DEL', log, hash)
  for _, sub in ipairs(found) do
    local index = math.floor(sub[2] * SUB_WINDOWS / period)
    used = used + sub[1]
    counts[index] = (counts[index] or 0) + sub[1]
    redis.call('HSET', hash, text(index), text(counts[index]) .. ' ' .. text(sub[2]))
  end
  local newest = found[#found][2]
  redis.call('HSET', hash, 'used', text(used), 'oldest', text(math.floor(found[1][2] * SUB_WINDOWS / period)),
    'newest', text(newest))
  expire(hash, newest, period)
end

-- The rule had other periods before. A window that is new begins with its own earlier record, if there is one, and
-- what the former windows recorded since; or with the record of one former window, whichever holds more.
local function carry_over(base, former, log, hash, period)
  local own, own_sum = recorded(log, hash, period)
  local since = #own > 0 and own[#own][2] or 0
  local best, most = {}, 0
  local function consider(found, after)
    local kept, sum = {}, 0
    if after then
      for _, sub in ipairs(own) do kept[#kept + 1] = sub end
    end
    for _, sub in ipairs(found) do
      if not after or sub[3] > after then kept[#kept + 1] = sub end
    end
    local recent = {}
    for _, sub in ipairs(kept) do
      if sub[2] + period > clock then recent[#recent + 1], sum = sub, sum + sub[1] end
    end
    if sum > most then best, most = recent, sum end
  end
  for name in string.gmatch(former, '%S+') do
    local seconds = tonumber(name)
    local found = recorded(base .. name .. ':log', base .. name .. ':sub', seconds * 1000000)
    consider(found, nil)
    if own_sum > 0 then consider(found, since + LONGEST_LOG) end  -- write_log moves requests by as many microseconds
  end
  if most > LONGEST_LOG then
    write_sub_windows(log, hash, period, best)
  elseif most > 0 then
    write_log(log, hash, period, best)
  else
    redis.call('DEL', log, hash)
  end
end

local function set_back(log, period, ahead)  -- the clock was: nobody is to wait for it
  local words = {'ZADD', log}
  for _, member in ipairs(redis.call('ZRANGE', log, 0, -1)) do
    local at = text(tonumber(member) - ahead)
    words[#words + 1], words[#words + 2] = at, at
  end
  redis.call('DEL', log)
  redis.call(unpack(words))
  expire(log, clock, period)
end

local function as_sub_windows(log, hash, period)
  if redis.call('EXISTS', log) == 1 then write_sub_windows(log, hash, period, (recorded(log, hash, period))) end
  local state = redis.call('HMGET', hash, 'used', 'oldest', 'newest')
  local used, oldest, newest = tonumber(state[1] or 0), tonumber(state[2] or 0), tonumber(state[3] or 0)
  if used > 0 and newest > clock + period / SUB_WINDOWS then  -- The clock was set back.
    oldest, newest = math.floor(clock * SUB_WINDOWS / period), clock
    redis.call('DEL', hash)
    redis.call('HSET', hash, text(oldest), text(used) .. ' ' .. text(newest),
      'used', text(used), 'oldest', text(oldest), 'newest', text(newest))
    expire(hash, newest, period)
  end
  local now = math.max(clock, newest)
  local current = math.floor(now * SUB_WINDOWS / period)
  local first = oldest
  while used > 0 and oldest <= current do
    local sub = redis.call('HGET', hash, text(oldest))
    if sub then
      local count, last = parts(sub)
      if last + period > clock then break end
      used = used - count
      redis.call('HDEL', hash, text(oldest))
    end
    oldest = oldest + 1
  end
  if used > 0 and oldest ~= first then
    redis.call('HSET', hash, 'used', text(used), 'oldest', text(oldest))
  elseif used <= 0 then
    redis.call('DEL', hash)
    used, oldest = 0, current
  end
  return {
    used = used,
    until_gone = function(count)
      for index = oldest, current do
        local sub = redis.call('HGET', hash, text(index))
        if sub then
          local gone, last = parts(sub)
          count = count - gone
          if count <= 0 then return last + period - clock end
        end
      end
      return period
    end,
    add = function(count)
      local sub = redis.call('HGET', hash, text(current))
      local before = sub and parts(sub) or 0
      redis.call('HSET', hash, text(current), text(before + count) .. ' ' .. text(now),
        'used', text(used + count), 'oldest', text(oldest), 'newest', text(now))
      expire(hash, now, period)
    end
  }
end

local function as_log(log, hash, period)
  if redis.call('EXISTS', hash) == 1 then
    local window = as_sub_windows(log, hash, period)
    if window.used > LONGEST_LOG then return window end  -- The limit was lowered: later, when enough have left.
    if window.used > 0 then write_log(log, hash, period, (recorded(log, hash, period))) end
  end
  redis.call('ZREMRANGEBYSCORE', log, '-inf', text(clock - period))
  local now, used = clock, redis.call('ZCARD', log)
  if used > 0 then
    local newest = tonumber(redis.call('ZRANGE', log, -1, -1)[1])
    if newest > clock + period / SUB_WINDOWS then
      set_back(log, period, newest - clock)
      newest = clock
    end
    now = math.max(clock, newest + 1)
  end
  return {
    used = used,
    until_gone = function(count)
      return tonumber(redis.call('ZRANGE', log, count - 1, count - 1)[1]) + period - clock
    end,
    add = function(count)
      local words = {'ZADD', log}
      for i = 0, count - 1 do
        words[#words + 1], words[#words + 2] = text(now + i), text(now + i)
      end
      redis.call(unpack(words))
      expire(log, now + count, period)
    end
  }
end

local windows, lists, wait = {}, {}, 0
local key, argument = 1, 2
while key <= #KEYS do
  local list, names, longest = KEYS[key], ARGV[argument], 0
  local count, first = tonumber(ARGV[argument + 1]), argument + 2
  for i = 0, count - 1 do longest = math.max(longest, tonumber(ARGV[first + 2 * i + 1])) end
  local lifetime = text(math.ceil(longest / 1000))
  local former = redis.call('GETEX', list, 'PX', lifetime)
  for i = 0, count - 1 do
    local log, hash = KEYS[key + 1 + 2 * i], KEYS[key + 2 + 2 * i]
    local limit, period = tonumber(ARGV[first + 2 * i]), tonumber(ARGV[first + 2 * i + 1])
    if former and former ~= names then
      local base = string.sub(list, 1, -#'periods' - 1)
      local name = string.sub(log, #base + 1, -#':log' - 1)
      if not string.find(' ' .. former .. ' ', ' ' .. name .. ' ', 1, true) then
        carry_over(base, former, log, hash, period)
      end
    end
    local form = limit <= LONGEST_LOG and as_log or as_sub_windows
    local window = form(log, hash, period)
    window.cost = math.min(cost, limit)
    local over = window.used + window.cost - limit
    if cost > 0 and over > 0 then wait = math.max(wait, window.until_gone(over)) end
    windows[#windows + 1] = window
  end
  if former and former ~= names then
    redis.call('SET', list, names, 'PX', lifetime)
  elseif not former then
    lists[#lists + 1] = {list, names, lifetime}
  end
  key, argument = key + 1 + 2 * count, first + 2 * count
end
if wait == 0 and cost > 0 then
  for _, new in ipairs(lists) do redis.call('SET', new[1], new[2], 'PX', new[3]) end
end
local reply = {wait}
for _, window in ipairs(windows) do
  if wait == 0 and cost > 0 then
    window.add(window.cost)
    window.used = window.used + window.cost
  end
  reply[#reply + 1] = window.used
  reply[#reply + 1] = window.used > 0 and window.until_gone(1) or 0
end
return reply
"""
)
