"""The cache."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlencode

from starlette.datastructures import FormData, QueryParams
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette_admin.flash import flash
from starlette_admin.routing import route

from app.admin.plots import Plot, Series, in_percent, tone_of
from app.admin.views.away import unless_away
from app.admin.views.base import ConsolePage, app_of, audit, session_of
from app.core.metrics.recent import CacheCounts, Hour, Recent
from app.core.utils.cache import Cache, CachedVariant, KnownPrefix, entries_of, known_prefixes, purge
from app.core.utils.cache.keys import resource_key
from app.core.utils.redis_link import LinkError

MOST_DRAWN: Final = 8  # prefixes, the most asked
LONGEST: Final = 500  # characters of an id, and of a parameter
LATER: Final = "The cache is away or not trusted now. It is dropped before the cache is used again."
NOT_ALL: Final = "Redis/Valkey is away: not all of it is dropped. Repeat it when it is back."


@dataclass(frozen=True, slots=True)
class Wanted:
    """The resource that a form names.

    Attributes:
        known: its prefix; None for none, or one that this app does not have.
        id: its id; empty: none in particular.
        values: of the prefix's parameters.
    """

    known: KnownPrefix | None = None
    id: str = ""
    values: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, sent: QueryParams | FormData, prefixes: Sequence[KnownPrefix]) -> "Wanted":
        """From the fields `prefix`, `id` and one `parameter-...` for each parameter."""
        template = str(sent.get("prefix") or "")
        known = next((one for one in prefixes if one.template == template), None)
        names = known.parameters if known is not None else ()
        values = {name: str(sent.get(f"parameter-{name}") or "")[:LONGEST] for name in names}
        return cls(known, str(sent.get("id") or "")[:LONGEST], values)

    @property
    def prefix(self) -> str | None:
        """The prefix with its parameters filled in; None while one, or the id, is missing."""
        if self.known is None or not self.id or not all(self.values.values()):
            return None
        return self.known.fill(**self.values)

    @property
    def query(self) -> str:
        """The address of its page ends with this."""
        if self.known is None:
            return ""
        named = {f"parameter-{name}": value for name, value in self.values.items()}
        return "?" + urlencode({"prefix": self.known.template, "id": self.id, **named}, errors="replace")


class CachePage(ConsolePage):
    """How often the cache answers, what it holds of a resource, and how that is dropped."""

    menu_label = "Cache"
    icon = "fa-solid fa-bolt"
    path = "/cache"
    route_name = "cache"

    @route("")
    async def index(self, request: Request) -> Response:
        """The last hour, and the entries of the resource that is asked for."""
        prefixes = known_prefixes(app_of(request))
        wanted = Wanted.of(request.query_params, prefixes)
        cache, hour = _cache_of(request), await _hour_of(request)
        values = {
            "state": _state_of(cache),
            "counts": _counts_of(hour, prefixes) if hour is not None else None,
            "plot_of_hits": _plot_of(hour) if hour is not None else None,
            "prefixes": prefixes,
            "wanted": wanted,
            "entries": await _entries_of(cache, wanted),
        }
        return self.page(request, "cache.html", values)

    @route("/purge", methods=["POST"], name="cache-purge")
    async def purge(self, request: Request) -> Response:
        """Drops one resource, or all of a prefix when that is confirmed."""
        form, prefixes = await request.form(), known_prefixes(app_of(request))
        wanted = Wanted.of(form, prefixes)
        if wanted.known is None:
            flash(request, "No route of this app is cached under this prefix.", "error")
        elif form.get("what") == "resource":
            await self._purge_resource(request, wanted)
        elif form.get("confirmed") == "yes":
            await self._purge_prefix(request, wanted.known, prefixes)
        else:
            flash(request, "Nothing is dropped: it was not confirmed.", "error")
        return RedirectResponse(f"{request.url_for('admin:cache')}{wanted.query}", 303)

    async def _purge_resource(self, request: Request, wanted: Wanted) -> None:
        if wanted.known is None or wanted.prefix is None:
            flash(request, "Nothing is dropped: say which resource.", "error")
            return
        await self._note(request, resource_key(wanted.prefix, wanted.id), {"prefix": wanted.prefix, "id": wanted.id})
        cache = _cache_of(request)
        count = await purge(cache, wanted.known.template, wanted.id, known=[wanted.known], values=wanted.values)
        if count is None:
            flash(request, LATER, "warning")
        else:
            flash(request, "The resource is dropped." if count else "Nothing was stored of the resource.", "success")

    async def _purge_prefix(self, request: Request, known: KnownPrefix, prefixes: Sequence[KnownPrefix]) -> None:
        target = f"{known.template}:*"
        await self._note(request, target, {"prefix": known.template})
        try:
            count = await purge(_cache_of(request), known.template, known=prefixes)
        except LinkError as error:
            await audit(request, "cache.purge_failed", f"cache {target}", {}, {"why": str(error)})
            flash(request, NOT_ALL, "error")
            return
        if count is None:
            flash(request, LATER, "warning")
        else:
            flash(request, f"Resources dropped of {known.template}: {count:,}.", "success")

    async def _note(self, request: Request, target: str, what: dict[str, str]) -> None:
        """Writes down what is about to be done: it is no part of the transaction, and cannot be rolled back."""
        await audit(request, "cache.purge", f"cache {target}", what, {"dropped": True})
        await session_of(request).flush()


def _cache_of(request: Request) -> Cache:
    cache: Cache = app_of(request).state.cache
    return cache


def _state_of(cache: Cache) -> str:
    if cache.usable:
        return "in use"
    return "not trusted" if cache.store.link.up else "away"


async def _entries_of(cache: Cache, wanted: Wanted) -> list[CachedVariant] | None:
    """None when it cannot be known, or nothing is asked for."""
    return None if wanted.prefix is None else await unless_away(entries_of(cache, wanted.prefix, wanted.id))


async def _hour_of(request: Request) -> Hour | None:
    recent: Recent | None = getattr(app_of(request).state, "recent", None)
    return None if recent is None else await unless_away(recent.last_hour())


def _counts_of(hour: Hour, prefixes: Sequence[KnownPrefix]) -> list[tuple[str, CacheCounts]]:
    """By prefix: those of this app, and whatever else was asked for."""
    caches = hour.last(len(hour.minutes)).caches
    names = {one.template for one in prefixes} | caches.keys()
    return [(name, caches.get(name, CacheCounts())) for name in sorted(names)]


def _plot_of(hour: Hour) -> Plot:
    caches = hour.last(len(hour.minutes)).caches
    asked = {name: counts.hits + counts.stale + counts.misses for name, counts in caches.items()}
    names = sorted(sorted(asked, key=lambda name: -asked[name])[:MOST_DRAWN])
    series = [
        Series(name, [_percent(minute.caches.get(name)) for minute in hour.minutes], tone_of(n))
        for n, name in enumerate(names)
    ]
    return Plot("Hit ratio by prefix", "%", series, [minute.start for minute in hour.minutes])


def _percent(counts: CacheCounts | None) -> float | None:
    return in_percent(counts.hit_ratio if counts is not None else None)
