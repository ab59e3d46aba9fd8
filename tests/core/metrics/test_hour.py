"""The arithmetic of the last hour."""

import random
from bisect import bisect_left
from collections import Counter
from datetime import UTC, datetime
from math import ceil, inf

import pytest

from app.core.metrics.recent.hour import BOUNDS, CacheCounts, Hour, LimitCounts, Minute, Totals, quantile


def bucketed(seconds: list[float]) -> dict[float, int]:
    return Counter(BOUNDS[bisect_left(BOUNDS, value)] for value in seconds)


def test_nothing_has_no_quantile() -> None:
    assert quantile(0.5, {}) is None
    assert quantile(0.95, {0.1: 0}) is None
    nothing = Totals()
    assert (nothing.p50, nothing.p95, nothing.mean, nothing.error_share, nothing.hit_ratio) == (None,) * 5
    assert nothing.refused == 0


@pytest.mark.parametrize(
    ("share", "buckets", "expected"),
    [
        (0.5, {0.0025: 10}, 0.00125),
        (1.0, {0.0025: 10}, 0.0025),
        (0.5, {0.0025: 5, 0.005: 5}, 0.0025),
        (0.75, {0.0025: 5, 0.005: 5}, 0.00375),
        (0.95, {0.005: 90, 0.1: 10}, 0.075),  # The half of the bucket from 0.05 to 0.1.
        (0.5, {0.25: 1, 10.0: 1}, 0.25),
        (0.95, {0.25: 1, inf: 99}, 10.0),  # Above the highest bound it cannot be told.
    ],
)
def test_quantiles_by_hand(share: float, buckets: dict[float, int], expected: float) -> None:
    assert quantile(share, buckets) == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.95, 0.99])
def test_a_quantile_is_in_the_bucket_of_the_exact_one(share: float) -> None:
    chance = random.Random(7)  # noqa: S311 -- no secret
    for _ in range(200):
        seconds = sorted(min(9.0, chance.lognormvariate(-4, 1.5)) for _ in range(chance.randint(1, 400)))
        exact = seconds[ceil(share * len(seconds)) - 1]
        upper = bisect_left(BOUNDS, exact)
        found = quantile(share, bucketed(seconds))
        assert found is not None
        assert (BOUNDS[upper - 1] if upper else 0) <= found <= BOUNDS[upper]


def test_evenly_spread_requests_have_exact_quantiles() -> None:
    seconds = [n / 100_000 for n in range(1, 100_001)]  # up to a second
    totals = Totals(buckets=bucketed(seconds))
    assert totals.p50 == pytest.approx(0.5)
    assert totals.p95 == pytest.approx(0.95)


def test_bounds_of_another_version_are_taken_in() -> None:
    assert quantile(1.0, {0.3: 4}) == pytest.approx(0.3)
    assert quantile(0.5, {0.3: 4}) == pytest.approx(0.275)  # That bucket begins at 0.25.


def test_a_minute_as_it_is_kept() -> None:
    words = (
        b"requests 9 errors 2 unrouted 4 unrouted_errors 1 microseconds 1500000 le:0.05 8 le:inf 1 cache:hit:tier 6 "
    )
    words += b"cache:miss:tier 1 cache:stale:user:x 3 limit:refused:* 2 limit:allowed:/a:b 5 cache:new:tier 1 new 7"
    minute = Minute.of(30_000_000, words.split())
    assert minute == Minute(
        start=datetime(2027, 1, 15, 8, tzinfo=UTC),
        requests=9,
        errors=2,
        unrouted=4,
        unrouted_errors=1,
        seconds=1.5,
        buckets={0.05: 8, inf: 1},
        caches={"tier": CacheCounts(hits=6, misses=1), "user:x": CacheCounts(stale=3)},
        limits={"*": LimitCounts(refused=2), "/a:b": LimitCounts(allowed=5)},
    )


def test_means_are_of_what_is_timed() -> None:
    totals = Totals(requests=100, seconds=1.0, buckets={0.1: 10, 0.25: 10})
    assert (totals.timed, totals.mean, totals.p50) == (20, 0.05, 0.1)
    assert Totals(requests=100).mean is None


def test_sums() -> None:
    minutes = tuple(
        Minute(
            start=datetime(2027, 1, 1, 0, number, tzinfo=UTC),
            requests=10,
            errors=number,
            seconds=0.5,
            buckets={0.1: 10},
            caches={"a": CacheCounts(hits=1, stale=1, misses=2, bypass=9), f"b{number}": CacheCounts(hits=4)},
            limits={"*": LimitCounts(allowed=3, refused=1, would_refuse=2)},
        )
        for number in range(60)
    )
    hour = Hour(minutes)
    total = hour.last(2)
    assert (total.requests, total.errors, total.error_share) == (20, 58 + 59, 117 / 20)
    assert total.mean == pytest.approx(0.05)
    assert total.buckets == {0.1: 20}
    assert total.caches["a"] == CacheCounts(hits=2, stale=2, misses=4, bypass=18)
    assert total.caches["a"].hit_ratio == 0.5
    assert total.cache == CacheCounts(hits=10, stale=2, misses=4, bypass=18)
    assert total.hit_ratio == 12 / 16
    assert total.limit == LimitCounts(allowed=6, refused=2, would_refuse=4)
    assert total.refused == 2
    assert hour.last().requests == 50
    assert hour.last(60).requests == hour.last(1000).requests == 600
    assert hour.prefixes == sorted({"a", *(f"b{number}" for number in range(60))})
    assert hour.paths == ["*"]
    assert minutes[0].caches["a"] == CacheCounts(hits=1, stale=1, misses=2, bypass=9)  # as before
