"""What the cache does, in Prometheus' words."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

REQUESTS: Final = Counter(
    "slipway_cache_requests", "Requests to cached routes: hit, miss, stale, bypass.", ["prefix", "result"]
)
WAITS: Final = Counter("slipway_cache_waits", "Requests that waited for another's computation.", ["prefix"])
REFUSED_FILLS: Final = Counter(
    "slipway_cache_refused_fills", "Answers not stored, since the resource changed meanwhile.", ["prefix"]
)
COMPUTATION: Final = Histogram("slipway_cache_computation_seconds", "Time to compute an answer.", ["prefix"])
INVALIDATIONS: Final = Counter("slipway_cache_invalidations", "Keys and patterns dropped.", ["outcome"])
UP: Final = Gauge(
    "slipway_cache_up",
    "1 while the cache is in use; 0 while its server is away, or not trusted yet.",
    multiprocess_mode="livemin",
)


class Meter:
    """The metrics of one key prefix, looked up once."""

    def __init__(self, prefix: str) -> None:
        self.hit, self.miss, self.stale, self.bypass = (
            REQUESTS.labels(prefix, result) for result in ("hit", "miss", "stale", "bypass")
        )
        self.waits = WAITS.labels(prefix)
        self.refused_fills = REFUSED_FILLS.labels(prefix)
        self.computation = COMPUTATION.labels(prefix)
