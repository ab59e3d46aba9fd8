"""The cache's connection to Redis/Valkey."""

from redis.asyncio import Redis

# Set while an app with `RedisCacheSettings` runs.
client: Redis | None = None
