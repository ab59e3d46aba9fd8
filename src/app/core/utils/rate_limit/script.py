"""The exact sliding window, as a Lua script: all windows of a rule are decided together, by the server's clock.

Up to 128 requests a window is a log: a sorted set with a member for each request, its time. Above, it is 60 sub-windows
in one hash, each with its count and the time of its last request: they leave together, when that one does, so that
there are never more than the limit in any period, and again the limit after one.

When a limit has passed 128 since, the requests are carried over into the other form, once there are few enough.
Times are in microseconds. What is refused is not counted.
"""

from typing import Final

from app.core.utils.redis_link import Script

LONGEST_LOG: Final = 128  # requests; also the most that Redis/Valkey keeps of a sorted set in its compact form
SUB_WINDOWS: Final = 60

# KEYS: a log and a hash for each window. ARGV: the cost, then the limit and the period of each window.
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

local function spread(log, hash, period)  -- a log into sub-windows
  local counts, newest, oldest, used = {}, 0, nil, 0
  for _, member in ipairs(redis.call('ZRANGE', log, 0, -1)) do
    local at = tonumber(member)
    local index = math.floor(at * SUB_WINDOWS / period)
    oldest, newest, used = oldest or index, at, used + 1
    counts[index] = (counts[index] or 0) + 1
    redis.call('HSET', hash, text(index), text(counts[index]) .. ' ' .. text(at))
  end
  redis.call('HSET', hash, 'used', text(used), 'oldest', text(oldest), 'newest', text(newest))
  expire(hash, newest, period)
  redis.call('DEL', log)
end

local function gather(log, hash, period)  -- sub-windows of no more than a log takes into one; nobody leaves early
  local subs, fields = {}, redis.call('HGETALL', hash)
  for i = 1, #fields, 2 do
    if string.find(fields[i], '^%d') then
      local count, last = parts(fields[i + 1])
      subs[#subs + 1] = {count, last}
    end
  end
  table.sort(subs, function(one, other) return one[2] < other[2] end)
  local words, at = {'ZADD', log}, 0
  for _, sub in ipairs(subs) do
    for _ = 1, sub[1] do
      at = math.max(sub[2], at + 1)
      words[#words + 1], words[#words + 2] = text(at), text(at)
    end
  end
  redis.call('DEL', hash)
  redis.call(unpack(words))
  expire(log, at, period)
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
  if redis.call('EXISTS', log) == 1 then spread(log, hash, period) end
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
    if window.used > 0 then gather(log, hash, period) end
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

local windows, wait = {}, 0
for i = 1, #KEYS / 2 do
  local limit, period = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  local form = limit <= LONGEST_LOG and as_log or as_sub_windows
  local window = form(KEYS[2 * i - 1], KEYS[2 * i], period)
  window.cost = math.min(cost, limit)
  local over = window.used + window.cost - limit
  if cost > 0 and over > 0 then wait = math.max(wait, window.until_gone(over)) end
  windows[i] = window
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
