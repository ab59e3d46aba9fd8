"""Rate limits: the connection to Redis/Valkey, and the routes that a rule can name."""

from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from redis.asyncio import Redis

# Set while an app with `RedisRateLimiterSettings` runs.
client: Redis | None = None


def route_templates(app: FastAPI) -> list[str]:
    """The documented paths of an app with all their prefixes, such as `/api/v1/user/{username}`, sorted.

    FastAPI keeps included routers as a tree, in which a route does not know its prefix.
    """
    contexts = iter_route_contexts(app.routes)
    return sorted(
        {
            context.path
            for context in contexts
            if isinstance(context.original_route, APIRoute) and context.path and context.include_in_schema
        }
    )
