"""The exact sliding window, as a Lua script: all windows of a rule are decided together, by the server's clock.

Up to 128 requests a window is a log: a sorted set with a member for each request, its time. Above, it is 60 sub-windows
in one hash, each with its count and the time of its last request: they leave together, when that one does, so that
there are never more than the limit in any period, and again the limit after one.

Whichever a window is, the other form's requests are carried over when its limit has passed 128 since.
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

local function gather(log, hash, period)  -- sub-windows into a log: the newest, who are the last to leave
  local subs, fields = {}, redis.call('HGETALL', hash)
  for i = 1, #fields, 2 do
    if string.find(fields[i], '^%d') then
      local count, last = parts(fields[i + 1])
      subs[#subs + 1] = {count, last}
    end
  end
  table.sort(subs, function(one, other) return one[2] > other[2] end)
  local words, at = {'ZADD', log}, nil
  for _, sub in ipairs(subs) do
    for _ = 1, sub[1] do
      if #words < 2 * LONGEST_LOG + 2 then
        at = math.min(sub[2], (at or sub[2] + 1) - 1)
        words[#words + 1], words[#words + 2] = text(at), text(at)
      end
    end
  end
  if at then
    redis.call(unpack(words))
    expire(log, subs[1][2], period)
  end
  redis.call('DEL', hash)
end

local function as_log(log, hash, period)
  if redis.call('EXISTS', hash) == 1 then gather(log, hash, period) end
  redis.call('ZREMRANGEBYSCORE', log, '-inf', text(clock - period))
  local now, used = clock, redis.call('ZCARD', log)
  if used > 0 then
    local newest = tonumber(redis.call('ZRANGE', log, -1, -1)[1])
    if newest > clock + period then  -- The clock was set back: nobody is to wait for it.
      redis.call('DEL', log)
      used = 0
    else
      now = math.max(clock, newest + 1)
    end
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

local function as_sub_windows(log, hash, period)
  if redis.call('EXISTS', log) == 1 then spread(log, hash, period) end
  local state = redis.call('HMGET', hash, 'used', 'oldest', 'newest')
  local used, oldest, newest = tonumber(state[1] or 0), tonumber(state[2] or 0), tonumber(state[3] or 0)
  if used > 0 and newest > clock + period then  -- The clock was set back.
    redis.call('DEL', hash)
    used, newest = 0, 0
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

local windows, wait = {}, 0
for i = 1, #KEYS / 2 do
  local limit, period = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  local form = limit <= LONGEST_LOG and as_log or as_sub_windows
  local window = form(KEYS[2 * i - 1], KEYS[2 * i], period)
  window.cost, window.free_in = math.min(cost, limit), 0
  if window.used > 0 then
    window.free_in = window.until_gone(1)
  elseif cost > 0 then
    window.free_in = period
  end
  local over = window.used + window.cost - limit
  if cost > 0 and over > 0 then wait = math.max(wait, over == 1 and window.free_in or window.until_gone(over)) end
  windows[i] = window
end
local reply = {wait}
for _, window in ipairs(windows) do
  if wait == 0 and cost > 0 then
    window.add(window.cost)
    window.used = window.used + window.cost
  end
  reply[#reply + 1] = window.used
  reply[#reply + 1] = window.free_in
end
return reply
"""
)
