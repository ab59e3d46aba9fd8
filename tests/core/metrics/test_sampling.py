"""What is new among what a process has counted."""

import os
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest
import yaml

from app.core.metrics import http
from app.core.metrics.recent.sampling import MOST_PATHS, MOST_PREFIXES, MOST_ROUTES, OTHER, Metrics, Sampler
from tests.core.metrics.conftest import own_metrics
from tests.processes import ROOT


def observe(metrics: Metrics, route: str, status: str, seconds: float) -> None:
    metrics.requests.labels("GET", route, status).inc()
    metrics.seconds.labels("GET", route).observe(seconds)


def test_each_look_tells_what_is_new() -> None:
    metrics = own_metrics()
    sampler = Sampler(metrics)
    assert not sampler.look()
    observe(metrics, "/a", "200", 0.001)
    observe(metrics, "/a", "503", 0.02)
    observe(metrics, "/b", "404", 0.02)
    observe(metrics, "/b", "aborted", 20)
    metrics.cache.labels("tier", "hit").inc(3)
    metrics.limits.labels("*", "refused", "redis").inc(2)
    metrics.limits.labels("*", "refused", "process").inc(1)
    change = sampler.look()
    assert change.totals == {
        "requests": 4,
        "errors": 1,
        "microseconds": 20_041_000,
        "le:0.0025": 1,
        "le:0.025": 2,
        "le:inf": 1,
        "cache:hit:tier": 3,
        "limit:refused:*": 3,
    }
    assert change.routes == {
        "requests:/a": 2,
        "errors:/a": 1,
        "microseconds:/a": 21_000,
        "requests:/b": 2,
        "microseconds:/b": 20_020_000,
    }
    assert not sampler.look()
    observe(metrics, "/a", "200", 0.001)
    assert sampler.look().totals == {"requests": 1, "microseconds": 1000, "le:0.0025": 1}


def test_what_has_no_route_is_apart() -> None:
    metrics = own_metrics()
    sampler = Sampler(metrics)
    for status in ("404", "200", "500"):
        observe(metrics, http.NO_ROUTE, status, 9.0)
    change = sampler.look()
    assert change.totals == {"unrouted": 3, "unrouted_errors": 1}
    assert not change.routes


def test_routes_that_say_nothing_about_the_app_are_not_judged() -> None:
    """Who waits for a job's events takes as long as the job; `/ready` fails when the database does."""
    metrics = own_metrics()
    sampler = Sampler(metrics)
    observe(metrics, "/a", "200", 0.001)
    observe(metrics, "/api/v1/tasks/task/{task_id}/events", "200", 900.0)
    observe(metrics, "/metrics", "200", 2.0)
    observe(metrics, "/api/v1/ready", "503", 0.001)
    observe(metrics, "/api/v1/events/thing", "503", 0.001)
    change = sampler.look()
    assert change.totals == {"requests": 5, "errors": 1, "microseconds": 3000, "le:0.0025": 3}
    assert change.routes["microseconds:/metrics"] == 2_000_000
    assert change.routes["errors:/api/v1/ready"] == 1
    observe(metrics, "/api/v1/ready", "503", 0.001)
    observe(metrics, "/metrics", "200", 2.0)
    assert sampler.look().totals == {"requests": 2, "microseconds": 1000, "le:0.0025": 1}


def test_they_are_those_of_the_alerts() -> None:
    groups = yaml.safe_load((ROOT / "deploy" / "monitoring" / "alerts.yml").read_text())["groups"]
    rules = {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}
    assert f'route!~"{http.UNTIMED}"' in rules["SlipwayApiSlow"]
    assert f'route!~"{http.NEVER_FAILED}"' in rules["SlipwayApiErrors"]


def test_what_a_process_begins_anew_is_new() -> None:
    metrics = own_metrics()
    sampler = Sampler(metrics)
    metrics.cache.labels("tier", "hit").inc(5)
    sampler.look()
    metrics.cache.labels("tier", "hit").reset()
    metrics.cache.labels("tier", "hit").inc(2)
    assert sampler.look().totals == {"cache:hit:tier": 2}


def test_too_many_names_are_counted_together() -> None:
    metrics = own_metrics()
    sampler = Sampler(metrics)
    for _ in range(2):  # The same have their names the second time.
        for number in range(MOST_ROUTES + 50):
            observe(metrics, f"/{number}", "500", 0.001)
            metrics.cache.labels(f"prefix{number}", "miss").inc()
            metrics.limits.labels(f"/{number}", "allowed", "redis").inc()
        change = sampler.look()
        assert change.totals["requests"] == MOST_ROUTES + 50
        assert change.routes[f"requests:{OTHER}"] == change.routes[f"errors:{OTHER}"] == 50
        assert change.totals[f"cache:miss:{OTHER}"] == MOST_ROUTES + 50 - MOST_PREFIXES
        assert change.totals[f"limit:allowed:{OTHER}"] == MOST_ROUTES + 50 - MOST_PATHS
        assert len(change.routes) == 3 * (MOST_ROUTES + 1)
        assert len([name for name in change.totals if ":" in name]) == 1 + MOST_PREFIXES + 1 + MOST_PATHS + 1


def test_it_sees_what_prometheus_sees() -> None:
    """It looks at the metrics past their public face."""
    metrics = own_metrics()
    sampler = Sampler(metrics)
    for number in range(300):
        observe(metrics, f"/{number % 7}", "200", number / 100)
    change = sampler.look()
    cumulative: Counter[str] = Counter()
    seconds = requests = 0.0
    for family in (*metrics.seconds.collect(), *metrics.requests.collect()):
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                cumulative[str(float(sample.labels["le"]))] += int(sample.value)
            elif sample.name.endswith("_sum"):
                seconds += sample.value
            elif sample.name.endswith("_total"):
                requests += sample.value
    assert change.totals["requests"] == requests == 300
    assert change.totals["microseconds"] == pytest.approx(seconds * 1_000_000, abs=7)
    below = 0
    for bound, count in cumulative.items():
        assert change.totals[f"le:{bound}"] == count - below
        below = count
    assert below == 300


def test_of_several_processes_with_their_metrics_in_files_each_sees_its_own(tmp_path: Path) -> None:
    """Also one that was forked off, which begins with nothing."""
    program = textwrap.dedent(
        """
        import os, sys
        sys.path.insert(0, "src")
        from app.core.metrics.http import count_request
        from app.core.metrics.recent.sampling import Sampler
        for _ in range(5):
            count_request("GET", "/a", 200, 0.001)
        sampler = Sampler()
        print(os.environ["PROMETHEUS_MULTIPROC_DIR"] != "", sampler.look().totals["requests"], flush=True)
        if not (child := os.fork()):
            sampler.look()
            for _ in range(3):
                count_request("GET", "/a", 500, 0.001)
            print(dict(sampler.look().totals), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        print(dict(sampler.look().totals), flush=True)
        """
    )
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True, env=environment
    )
    child = {"requests": 3, "errors": 3, "microseconds": 3000, "le:0.0025": 3}
    assert done.stdout.splitlines() == ["True 5", str(child), "{}"]
