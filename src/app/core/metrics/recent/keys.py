"""Where the last hour is kept in Redis/Valkey, and the scripts that add to it.

All keys have one hash tag: a cluster has them in one place, where all of them are written, and read, in one go.
"""

from typing import Final

from app.core.utils.redis_link import Script

MINUTES: Final = 60  # that are shown
KEPT: Final = 7200  # seconds
BUSIEST_KEPT: Final = 180  # seconds: two minutes are looked at
MOST_RANKED: Final = 1000  # subjects of a rule and minute, of all processes

ROOT: Final = "{slipway:recent}"


def totals_key(minute: int) -> str:
    """A hash: what was counted in a minute (since 1970)."""
    return f"{ROOT}:{minute}"


def routes_key(minute: int) -> str:
    """A hash: the same by route."""
    return f"{ROOT}:routes:{minute}"


def busiest_keys(minute: int, rule_key: str) -> tuple[str, str]:
    """Two sorted sets: how often each subject has asked under a rule, and how often it was one too many."""
    return f"{ROOT}:busiest:{minute}:{rule_key}", f"{ROOT}:refused:{minute}:{rule_key}"


def sent_key(recorder: str) -> str:
    """The number of what a process has sent last."""
    return f"{ROOT}:sent:{recorder}"


# For a pipeline, whose commands are about keys.
NOW: Final = Script("return redis.call('TIME')")

# KEYS: where the last number stands, then hashes. ARGV: the number, for how many seconds the hashes are kept; for each
# hash, how many fields it has, then these and what is to be added to them. What has come before is not added again.
# Returns the time.
ADD: Final = Script(
    # The first line has a full server refuse it at once, and not in the middle. Redis 7, or any Valkey.
    """#!lua
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  local at = 3
  for i = 2, #KEYS do
    local last = at + 2 * tonumber(ARGV[at])
    for n = at + 1, last, 2 do redis.call('HINCRBY', KEYS[i], ARGV[n], ARGV[n + 1]) end
    if last > at then redis.call('EXPIRE', KEYS[i], ARGV[2]) end
    at = last + 1
  end
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
end
return redis.call('TIME')
"""
)

# KEYS: of a rule and minute, who has asked, and who was refused. ARGV: for how many seconds and how many of them are
# kept; then each subject, its calls, and how many of them were refused.
RANK: Final = Script(
    """#!lua
for n = 3, #ARGV, 3 do
  redis.call('ZINCRBY', KEYS[1], ARGV[n + 1], ARGV[n])
  if ARGV[n + 2] ~= '0' then redis.call('ZINCRBY', KEYS[2], ARGV[n + 2], ARGV[n]) end
end
for _, key in ipairs(KEYS) do
  redis.call('ZREMRANGEBYRANK', key, 0, -1 - tonumber(ARGV[2]))
  redis.call('EXPIRE', key, ARGV[1])
end
"""
)

# KEYS: of two minutes, who has asked, and who was refused. ARGV: how many to tell. Returns each subject, its calls, and
# how many of them were refused; the busiest first.
BUSIEST: Final = Script(
    """#!lua flags=no-writes
local found = redis.call('ZUNION', 2, KEYS[1], KEYS[3], 'WITHSCORES')
local reply = {}
for n = #found - 1, math.max(1, #found + 1 - 2 * tonumber(ARGV[1])), -2 do
  local refused = 0
  for _, key in ipairs({KEYS[2], KEYS[4]}) do refused = refused + (redis.call('ZSCORE', key, found[n]) or 0) end
  reply[#reply + 1], reply[#reply + 2], reply[#reply + 3] = found[n], tonumber(found[n + 1]), refused
end
return reply
"""
)
