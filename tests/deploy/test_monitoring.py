"""The dashboard, the alerts and the example of what Prometheus asks: they are about metrics that there are."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from app.core.config import Settings
from scripts.embedded import Valkey, free_port
from tests.processes import ROOT, running_worker

pytestmark = pytest.mark.anyio

MONITORING = ROOT / "deploy" / "monitoring"
NAME = re.compile(r"\b(slipway_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"[^"]*"')
OF_PROMETHEUS = {"instance", "job", "le"}
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((MONITORING / "slipway-dashboard.json").read_text())
    return loaded


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> Iterator[str]:
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    for rule in rules():
        yield rule["expr"]


def exposed(text: str) -> dict[str, set[str]]:
    """The labels that were seen, by the name that a sample has, or would have."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        names = [f"{family.name}{suffix}" for suffix in SUFFIXES.get(family.type, ())]
        found |= {name: found.get(name, set()) for name in names}
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


async def test_every_metric_that_is_asked_for_is_there(
    client: httpx2.AsyncClient, settings: Settings, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("WORKER_METRICS_PORT", str(port))
    with running_worker(valkey.port):
        async with httpx2.AsyncClient() as prometheus:
            of_the_worker = (await prometheus.get(f"http://127.0.0.1:{port}/metrics")).text
    await client.get("user/nobody")
    of_the_api = (await client.get("http://test/metrics")).text
    there = exposed(of_the_api)
    for name, labels in exposed(of_the_worker).items():
        there.setdefault(name, set()).update(labels)

    asked_for = [match for expression in expressions() for match in NAME.findall(expression)]
    assert len(asked_for) > 40
    assert {name for name, _ in asked_for} - there.keys() == set()
    for name, matchers in asked_for:
        # Of what has not happened yet, such as a lost lease, there are no samples, and no labels.
        if there[name]:
            assert set(MATCHER.findall(matchers.replace("$instance", "x"))) <= there[name] | OF_PROMETHEUS, name
    ours = {name for name in there if name.startswith("slipway_") and not name.endswith(("_sum", "_count", "_created"))}
    unused = ours - {name for name, _ in asked_for}
    assert unused == set(), "nobody looks at these"


def test_the_dashboard_has_its_parts_and_no_two_panels_in_one_place() -> None:
    loaded = dashboard()
    rows = [panel["title"] for panel in loaded["panels"] if panel["type"] == "row"]
    assert rows == ["API", "Cache", "Rate limits", "Jobs", "Pools"]
    ids = [panel["id"] for panel in loaded["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in loaded["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"
    assert {variable["name"] for variable in loaded["templating"]["list"]} == {"datasource", "instance"}


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"]["summary"].endswith((".", "}}"))
        assert len(rule["annotations"]["description"]) > 60, rule["alert"]


def test_the_jobs_have_the_names_that_the_alerts_know() -> None:
    scraped = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    assert [job["job_name"] for job in scraped["scrape_configs"]] == ["slipway-api", "slipway-worker"]
    assert scraped["rule_files"] == ["alerts.yml"]
    assert "credentials" not in scraped["scrape_configs"][0]["authorization"]  # A file has them.


def test_prometheus_takes_the_files(tmp_path: Path) -> None:
    """By its own tool, where that is installed (Debian: prometheus); else they are at least YAML and JSON."""
    for rule in rules():
        assert rule["expr"].count("(") == rule["expr"].count(")")
    promtool = shutil.which("promtool")
    if promtool is None:
        return
    for check, name in (("rules", "alerts.yml"), ("config", "prometheus.yml")):
        command = [promtool, "check", check, *(["--syntax-only"] if check == "config" else []), str(MONITORING / name)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    every = [{"record": f"test:{n}", "expr": usable(expr)} for n, expr in enumerate(expressions())]
    (tmp_path / "all.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": every}]}))
    done = subprocess.run(
        [promtool, "check", "rules", str(tmp_path / "all.yml")], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def usable(expression: str) -> str:
    """What Grafana would make of it."""
    return expression.replace("$__rate_interval", "1m").replace("$instance", ".*")
