"""What is done in Redis/Valkey in one step: Lua scripts, of one key each."""

from app.core.utils.redis_link import Script

_NOW = "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000) "

# KEYS: the resource. ARGV: variant, new token, lease in ms, how long a token lives in ms, the hash of a value that will
# not do, the most fields. A lease that has run out is handed on with its token, since what its first holder computes is
# as good.
TAKE = Script(
    _NOW
    + """
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', KEYS[1]) end
local value = redis.call('HGET', KEYS[1], 'v' .. ARGV[1])
if value and (ARGV[5] == '' or redis.sha1hex(value) ~= ARGV[5]) then return {'value', value} end
local token = ARGV[2]
local held = redis.call('HGET', KEYS[1], 'l' .. ARGV[1])
if held then
  local holder, ends = string.match(held, '^(.-):(%d+)$')
  if tonumber(ends) > now then return {holder == '' and 'free' or 'held', ends - now} end
  if holder ~= '' then token = holder end
elseif redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[6]) then
  redis.call('HDEL', KEYS[1], redis.call('HRANDFIELD', KEYS[1]))
end
redis.call('HSET', KEYS[1], 'l' .. ARGV[1], token .. ':' .. string.format('%.0f', now + ARGV[3]))
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[4]) then redis.call('PEXPIRE', KEYS[1], ARGV[4]) end
return {'lease', token}
"""
)

# KEYS: the resource. ARGV: variant, token, value, how long it is kept in ms.
STORE = Script(
    """
local held = redis.call('HGET', KEYS[1], 'l' .. ARGV[1])
if not held or string.match(held, '^(.-):') ~= ARGV[2] then return 0 end
local alone = redis.call('HLEN', KEYS[1]) == 1
redis.call('HSET', KEYS[1], 'v' .. ARGV[1], ARGV[3])
redis.call('HDEL', KEYS[1], 'l' .. ARGV[1])
if alone or redis.call('PTTL', KEYS[1]) < tonumber(ARGV[4]) then redis.call('PEXPIRE', KEYS[1], ARGV[4]) end
return 1
"""
)

# KEYS: the resource. ARGV: variant, token, for how long nobody needs a lease, in ms.
GIVE_UP = Script(
    _NOW
    + """
local held = redis.call('HGET', KEYS[1], 'l' .. ARGV[1])
if not held or string.match(held, '^(.-):') ~= ARGV[2] then return 0 end
if ARGV[3] == '0' then redis.call('HDEL', KEYS[1], 'l' .. ARGV[1]) return 1 end
redis.call('HSET', KEYS[1], 'l' .. ARGV[1], ':' .. string.format('%.0f', now + ARGV[3]))
if redis.call('HLEN', KEYS[1]) == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return 1
"""
)

# The notes are in microseconds. With them is noted since when there are any: what was noted before may be lost, since
# a server that is full evicts them, and one that starts anew has none.
# KEYS: the notes. ARGV: how long a note is kept in ms, then what is invalidated. It has to work in a full server, too.
NOTE = Script(
    "#!lua flags=allow-oom\n"
    + """
local t = redis.call('TIME') local now = t[1] * 1000000 + t[2]
local born = redis.call('ZSCORE', KEYS[1], 'born') or string.format('%.0f', now)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[1] * 1000)
redis.call('ZADD', KEYS[1], born, 'born')
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return now
"""
)

# KEYS: the notes. ARGV: the resource, any pattern. The time, and when the last of them was, or can have been,
# invalidated.
LAST = Script(
    """
local t = redis.call('TIME') local now = t[1] * 1000000 + t[2]
local last = tonumber(redis.call('ZSCORE', KEYS[1], 'born') or now)
for _, what in ipairs(ARGV) do last = math.max(last, tonumber(redis.call('ZSCORE', KEYS[1], what) or 0)) end
return {now, last}
"""
)
