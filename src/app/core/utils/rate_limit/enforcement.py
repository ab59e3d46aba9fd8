"""One request and its limit: which rule applies, what the caller is told, and the refusal."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

from starlette.requests import HTTPConnection

from app.core import mounts
from app.core.client_address import network_of
from app.core.config import RateLimitMode
from app.core.connection import state_of
from app.core.exceptions.http_exceptions import Problem
from app.core.utils.rate_limit.limiter import Decision, Limiter
from app.core.utils.rate_limit.rules import Rule, canonical

HEADERS: Final = "slipway.rate_limit_headers"  # in a request's state: what its answer is to say about the limit
_COST: Final = "__rate_limit_cost__"

HandlerT = TypeVar("HandlerT", bound=Callable[..., Any])


class RateLimited(Problem):
    status = 429
    text = "Too many requests."


def rate_limit_cost(cost: int) -> Callable[[HandlerT], HandlerT]:
    """Has a request to this handler count as so many, instead of one; 0: it is not limited at all.

    A cost above a limit counts as the whole of it. Above or below the route's own decorator's line and `@cache`:

        @router.get("/report")
        @rate_limit_cost(10)
        async def report(): ...

    Raises: ValueError for a negative cost.
    """
    if cost < 0:
        raise ValueError("A cost is 0 or more.")

    def mark(handler: HandlerT) -> HandlerT:
        setattr(handler, _COST, cost)
        return handler

    return mark


async def limit(request: HTTPConnection, user_id: int | None = None, tier_id: int | None = None) -> None:
    """Counts a request. Allows it when Redis/Valkey is unreachable and this process has not had its part of the limit.

    Args:
        request: once it is routed.
        user_id: who asks; without one, the request is counted under the address it comes from.
        tier_id: the tier whose rules apply to them.

    Raises: RateLimited.
    """
    limiter: Limiter | None = getattr(state_of(request), "rate_limiter", None)
    if limiter is None or limiter.mode is RateLimitMode.OFF:
        return
    cost = getattr(request.scope["endpoint"], _COST, 1)
    rule = limiter.rules.find(tier_id, template_of(request), request.scope.get("method", "GET"))
    if rule is None or cost == 0:
        return
    subject = address_subject(request) if user_id is None else user_subject(user_id)
    await _count(request, limiter, subject, rule, cost)


async def limit_as(request: HTTPConnection, limiter: Limiter, path: str) -> None:
    """Counts a request of a mounted app, which no rule can name, as one of `path`, under the address it comes from.

    Raises: RateLimited.
    """
    rule = limiter.rules.find(None, canonical(path))
    if limiter.mode is not RateLimitMode.OFF and rule is not None:
        await _count(request, limiter, address_subject(request), rule, 1)


async def _count(request: HTTPConnection, limiter: Limiter, subject: str, rule: Rule, cost: int) -> None:
    decision = await limiter.decide(subject, rule, cost)
    headers = request.scope.setdefault("state", {})[HEADERS] = _headers(decision)
    if decision.wait and limiter.mode is RateLimitMode.ENFORCE:
        headers.append((b"retry-after", b"%d" % decision.wait))
        raise RateLimited(
            f"Too many requests. Try again in {decision.wait} s.", violated_policies=_violated(decision, cost)
        )


def user_subject(user_id: int) -> str:
    """What a user's requests are counted under."""
    return f"user:{user_id}"


def address_subject(request: HTTPConnection) -> str:
    """What the requests of those are counted under who have not signed in."""
    return f"address:{network_of(request.client.host if request.client else None)}"


def template_of(request: HTTPConnection) -> str:
    """The template of the route that was found, with all prefixes, as rules and OpenAPI name it."""
    return canonical(mounts.template_of(request.scope) or request.scope["path"])


def _violated(decision: Decision, cost: int) -> list[str]:
    return [
        policy.decode().strip('"')
        for policy, usage in zip(decision.rule.policies, decision.usages, strict=True)
        if usage.remaining < min(cost, usage.window.limit)
    ]


def _headers(decision: Decision) -> list[tuple[bytes, bytes]]:
    """`RateLimit-Policy` and `RateLimit`, as draft-ietf-httpapi-ratelimit-headers has them."""
    items = [
        b"%b;r=%d;t=%d" % (policy, usage.remaining, usage.reset)
        for policy, usage in zip(decision.rule.policies, decision.usages, strict=True)
    ]
    return [(b"ratelimit-policy", decision.rule.policy_header), (b"ratelimit", b", ".join(items))]
