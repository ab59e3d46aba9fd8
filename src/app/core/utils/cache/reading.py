"""One request to a cached GET: looks its answer up, or computes it and stores it."""

import time
from collections.abc import Iterable
from time import perf_counter
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from app.core.plain_routes import shaped
from app.core.route_inputs import CREDENTIALS, credentials
from app.core.utils.cache.entry import Entry, RawHeaders
from app.core.utils.cache.keys import variant_of
from app.core.utils.cache.opened import Cache
from app.core.utils.cache.plan import Plan
from app.core.utils.cache.store import RECENTLY, Held, Lease
from app.core.utils.redis_link import LinkError

LARGEST_BODY: Final = 524_288  # bytes; a larger answer is not stored, since it would hold up the others
STARTED: Final = "slipway.started"  # in a request's scope: when it came in, on `perf_counter`
CALLER: Final = "slipway.caller"


def identify_caller(request: HTTPConnection, *parts: object) -> None:
    """Says who asks, for private routes: for a sign-in dependency that has found it out.

    Who is somebody else with other rights (a role, a plan) has these among the parts; and the login, where an answer
    depends on it.
    """
    request.scope[CALLER] = repr(parts).encode("utf-8", "surrogatepass")


class Reading:
    """One request to a cached GET."""

    def __init__(
        self, plan: Plan, cache: Cache, route: Any, request: Request, injected: Response, arguments: dict[str, Any]
    ) -> None:
        self.plan = plan
        self.cache = cache
        self.route = route
        self.request = request
        self.injected = injected
        self.arguments = arguments
        self.given = list(injected.raw_headers)  # by dependencies, for this answer alone
        self.inputs = plan.inputs_of(route)
        self.private = self.inputs.signed_in if plan.private is None else plan.private
        # When it came in. Where nobody has noted it, it could have been long ago.
        self.started: float = request.scope.get(STARTED, perf_counter() - RECENTLY + 1)

    async def answer(self) -> Response:
        """The answer: from the cache, or computed."""
        plan, meter = self.plan, self.plan.meter
        plan.refuse_to_invalidate()
        skipped = self.inputs.unknown or (plan.unless is not None and self.arguments[plan.unless])
        if skipped or not self.cache.usable or not self._tells_callers_apart():
            return await self._compute(None, b"BYPASS")
        try:
            found, state = await self._look_up(plan.key(self.arguments), self._variant())
        except LinkError:
            found, state = None, b"BYPASS"
        if isinstance(found, Entry):
            (meter.hit if state == b"HIT" else meter.stale).inc()
            return self._answer_of(found, state)
        return await self._compute(found, state)

    async def _look_up(self, key: str, variant: bytes) -> tuple[Entry | Lease | None, bytes]:
        """What is stored; or the lease to compute it; or neither, when it is not to be stored."""
        plan, store = self.plan, self.cache.store
        stored = await store.get(key, variant)
        entry = Entry.load(stored)
        now = _milliseconds()
        if entry is not None and not (plan.allow_no_cache and self._asks_anew()):
            if now < entry.soft:
                return entry, b"HIT"
        else:
            entry = None
        taken = await store.take(key, variant, plan.lease, stored)
        if (taken is None or isinstance(taken, Held)) and entry is not None and now < entry.hard:
            return entry, b"STALE"
        if isinstance(taken, Held):
            plan.meter.waits.inc()
            taken = await store.wait(key, variant, plan.lease, stored, started=self.started)
        if isinstance(taken, bytes):
            entry = Entry.load(taken)
            return entry, b"HIT" if entry else b"BYPASS"
        return taken, b"MISS"

    async def _compute(self, lease: Lease | None, state: bytes) -> Response:
        plan, store = self.plan, self.cache.store
        (plan.meter.miss if state == b"MISS" else plan.meter.bypass).inc()
        started = perf_counter()
        try:
            result = await plan.call(self.arguments)
            response = await shaped(self.route, result, self.injected.status_code, is_coroutine=plan.is_coroutine)
        except BaseException as error:
            if lease is not None:  # An error would be one for each that waits: none of them has to wait for it.
                store.give_back(lease, uncoordinated=isinstance(error, Exception))
            raise
        plan.meter.computation.observe(perf_counter() - started)
        added = [pair for pair in self.injected.headers.raw if pair not in self.given]
        if not self._may_be_stored(response, added):
            if lease is not None:
                store.give_back(lease, uncoordinated=True)
            told = {name for name, _ in (*response.raw_headers, *self.injected.headers.raw)} & {b"cache-control"}
            more = [*self.injected.headers.raw, (b"x-cache", b"BYPASS")]
            response.raw_headers += [*more, *(pair for pair in self._about_caching() if pair[0] not in told)]
            return response
        entry = Entry.of(response, added, _milliseconds(), plan.fresh_milliseconds(), round(plan.stale * 1000))
        if lease is not None:
            await self._store(lease, entry)
        answer = self._answer_of(entry, state)
        answer.background = response.background
        return answer

    async def _store(self, lease: Lease, entry: Entry) -> None:
        store, value = self.cache.store, entry.dump()
        try:
            stored = store.covers(lease, self.started)
            if stored:
                stored = await store.store(lease, value, (entry.hard - entry.created) / 1000)
            elif STARTED in self.request.scope:
                await store.share(lease, value, self.started)
            else:  # Nobody knows who is older.
                await store.give_up(lease)
        except LinkError:
            return  # The next request tries again.
        if not stored:
            self.plan.meter.refused_fills.inc()

    def _answer_of(self, entry: Entry, state: bytes) -> Response:
        # Not by `headers`, which decodes all of them.
        sent = (value for name, value in self.request.scope["headers"] if name == b"if-none-match")
        if_none_match = value.decode("latin-1") if (value := next(sent, None)) is not None else None
        return entry.answer(state, _milliseconds(), if_none_match, [*self.given, *self._about_caching()])

    def _about_caching(self) -> RawHeaders:
        """What caches between us and the caller have to know."""
        told: list[tuple[bytes, bytes]] = []
        names = {name for name in self._distinguished() if "_" not in name}  # `user_agent` stands for `user-agent`
        if self.private or self.inputs.signed_in:  # Even where it is shared, `unless` can have let another answer out.
            names |= set(CREDENTIALS)
            if self._caller() and not any(name == b"cache-control" for name, _ in self.given):
                told.append((b"cache-control", b"private, no-store"))
        if names:
            told.append((b"vary", ", ".join(sorted(name.title() for name in names)).encode()))
        return told

    def _may_be_stored(self, response: Response, added: RawHeaders) -> bool:
        of_answer = Headers(raw=[*response.raw_headers, *added])
        everything = Headers(raw=[*response.raw_headers, *self.injected.headers.raw])
        policy = ",".join(everything.getlist("cache-control")).lower()
        return (
            isinstance(getattr(response, "body", None), bytes)
            and len(response.body) <= LARGEST_BODY
            and 200 <= response.status_code < 300
            and response.status_code != 206
            and "set-cookie" not in of_answer  # A dependency's is for this answer alone, and not kept with it.
            and "no-store" not in policy
            and (self.private or "private" not in policy)
            and self._names(everything.getlist("vary")) <= self._distinguished()
            and not self._holds_our_address(response, added)
        )

    def _holds_our_address(self, response: Response, added: RawHeaders) -> bool:
        """Whether there is an address in it that was made of the `Host` header: that is the caller's to choose."""
        if "host" in self._distinguished():
            return False
        address = b"//" + self.request.base_url.netloc.encode("utf-8", "surrogatepass")
        values = (value for _, value in (*response.raw_headers, *added))
        return address in bytes(response.body) or any(address in value for value in values)

    # ---- Which variant ----

    def _variant(self) -> bytes:
        scope = self.request.scope
        parts = [scope["path"].encode("utf-8", "surrogatepass"), scope["query_string"]]
        wanted = {name.encode() for name in (*self.inputs.headers, *self.plan.vary)}
        if self.inputs.cookies:
            wanted.add(b"cookie")
        if wanted:
            parts += [name + b"=" + value for name, value in scope["headers"] if name in wanted]
        if self.private:
            parts += [b"private", *self._caller()]
        return variant_of(parts)

    def _caller(self) -> list[bytes]:
        """Who asks: what authentication has found out, or else all that could tell one caller from another."""
        known = self.request.scope.get(CALLER)
        return [known] if known is not None else credentials(self.request, self.inputs.headers)

    def _tells_callers_apart(self) -> bool:
        """Whether a route that calls itself private has anything to know callers by; where it has a scheme, it has."""
        return bool(self.plan.private is not True or self.inputs.signed_in or self.plan.vary or self._caller())

    def _distinguished(self) -> set[str]:
        """The headers that distinguish variants."""
        private = CREDENTIALS if self.private else ()
        return {*self.inputs.headers, *self.plan.vary, *private, *({"cookie"} if self.inputs.cookies else ())}

    @staticmethod
    def _names(lines: Iterable[str]) -> set[str]:
        return {name.strip().lower() for line in lines for name in line.split(",") if name.strip()}

    def _asks_anew(self) -> bool:
        return "no-cache" in self._names(self.request.headers.getlist("cache-control"))


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000
