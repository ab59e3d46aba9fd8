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
from tests.deploy.files import COMPOSE_PROD, KUBERNETES, manifests, services, words_of
from tests.processes import ROOT, running_worker

pytestmark = pytest.mark.anyio

MONITORING = ROOT / "deploy" / "monitoring"
CONFIGURATIONS = ("prometheus.yml", "prometheus-kubernetes.yml")
ALERTS_TEST = Path(__file__).with_name("alerts_test.yml")
NAME = re.compile(r"\b(slipway_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"[^"]*"')
OF_PROMETHEUS = {"instance", "job", "le"}
JOB_OF = {"WorkerSettings": "slipway-worker", "LongWorkerSettings": "slipway-long-worker"}
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
    jobs = ["slipway-api", "slipway-worker", "slipway-long-worker"]
    for name in CONFIGURATIONS:
        scraped = configuration(name)
        missing = set(jobs) - {job["job_name"] for job in scraped["scrape_configs"]}
        assert not missing, f"add a `job_name` to `scrape_configs` of deploy/monitoring/{name} for {sorted(missing)}"
        assert scraped["rule_files"] == ["alerts.yml"]
        assert "credentials" not in scraped["scrape_configs"][0]["authorization"]  # A file has them.
    named = {match[1] for rule in rules() for match in re.finditer(r'job="([^"]*)"', rule["expr"])}
    assert {"slipway-worker", "slipway-long-worker"} <= named
    assert named <= {job["job_name"] for job in configuration("prometheus.yml")["scrape_configs"]}


def test_what_is_asked_are_the_servers_and_workers_of_compose() -> None:
    targets = {job["job_name"]: targets_of(job) for job in configuration("prometheus.yml")["scrape_configs"]}
    of_compose: dict[str, set[str]] = {name: set() for name in targets}
    for name, service in services(COMPOSE_PROD).items():
        words = words_of(service.get("command", ""))
        if "gunicorn" in words:
            of_compose["slipway-api"].add(f"{name}:{words[words.index('-b') + 1].rpartition(':')[2]}")
        elif "arq" in words:
            job = JOB_OF.get(
                words[-1].rpartition(".")[2], f"slipway-{name.replace('_', '-')}"
            )  # An application's: by its name.
            assert service["environment"]["WORKER_METRICS_HOST"] == "0.0.0.0"  # noqa: S104 -- asked from outside
            target = f"{name}:{service['environment']['WORKER_METRICS_PORT']}"
            assert job in of_compose, f"add `job_name: {job}`, target {target}, to deploy/monitoring/prometheus.yml"
            of_compose[job].add(target)
            assert "inside" in service["networks"]  # Where prometheus.yml says that Prometheus has to be.
    for job, expected in of_compose.items():
        assert expected, f"no service of docker-compose.prod.yml is asked by {job} of deploy/monitoring/prometheus.yml"
        assert targets[job] == expected, f"targets of {job} in deploy/monitoring/prometheus.yml: {sorted(expected)}"


def test_the_pods_are_asked_and_labelled_as_the_autoscaler_needs_it(tmp_path: Path) -> None:
    """By Prometheus' own relabelling, of what its service discovery would say of the manifests' pods."""
    loaded = configuration("prometheus-kubernetes.yml")
    namespace = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["namespace"]
    discovered = list(pods(namespace))
    found: dict[str, list[dict[str, str]]] = {}
    for job in loaded["scrape_configs"]:
        assert job.pop("kubernetes_sd_configs") == [{"role": "pod", "namespaces": {"names": [namespace]}}]
        job["static_configs"] = discovered
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(loaded | {"rule_files": []}))
    for job in loaded["scrape_configs"]:
        command = ("check", "service-discovery", "--timeout=1s", str(tmp_path / "prometheus.yml"), job["job_name"])
        labels = [target.get("labels", {}) for target in json.loads(promtool(*command))]
        found[job["job_name"]] = [kept for kept in labels if kept]
    pods_of_jobs = {name: [kept["pod"] for kept in labels] for name, labels in found.items()}
    assert (
        pods_of_jobs.items()
        >= {
            "slipway-api": ["slipway-web-1"],
            "slipway-worker": ["slipway-worker-1"],
            "slipway-long-worker": ["slipway-long-worker-1"],
        }.items()
    )
    for name, its in pods_of_jobs.items():
        assert its, f"{name} of deploy/monitoring/prometheus-kubernetes.yml finds no pod of deploy/kubernetes"
    for labels in found.values():
        for kept in labels:
            assert (kept["namespace"], kept["instance"]) == (namespace, kept["pod"])
    adapter = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text())
    needed = adapter["rules"]["custom"][0]["resources"]["overrides"].keys()
    assert needed <= found["slipway-api"][0].keys()


def test_prometheus_takes_the_files(tmp_path: Path) -> None:
    promtool("check", "rules", str(MONITORING / "alerts.yml"))
    for name in CONFIGURATIONS:
        loaded = configuration(name)
        for job in loaded["scrape_configs"]:
            job.pop("kubernetes_sd_configs", None)  # Debian's has no part for it.
        (tmp_path / name).write_text(yaml.safe_dump(loaded))
        promtool("check", "config", "--syntax-only", str(tmp_path / name))
    every = [{"record": f"test:{n}", "expr": usable(expr)} for n, expr in enumerate(expressions())]
    (tmp_path / "all.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": every}]}))
    promtool("check", "rules", str(tmp_path / "all.yml"))


def test_every_alert_fires_when_it_is_to_and_not_before(tmp_path: Path) -> None:
    loaded = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    for group in loaded["groups"]:
        for rule in group["rules"]:
            del rule["annotations"]["description"]  # promtool compares all of them, and these only say what to do.
    cases = yaml.safe_load(ALERTS_TEST.read_text())
    expected = [case for test in cases["tests"] for case in test["alert_rule_test"]]
    every = {rule["alert"] for rule in rules()}
    assert {case["alertname"] for case in expected if case["exp_alerts"]} == every
    assert {case["alertname"] for case in expected if not case["exp_alerts"]} == every
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(loaded))
    (tmp_path / "test.yml").write_text(yaml.safe_dump(cases | {"rule_files": ["alerts.yml"]}))
    promtool("test", "rules", str(tmp_path / "test.yml"))


def configuration(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((MONITORING / name).read_text())
    return loaded


def targets_of(job: dict[str, Any]) -> set[str]:
    return {target for group in job["static_configs"] for target in group["targets"]}


def pods(namespace: str) -> Iterator[dict[str, Any]]:
    """What Prometheus discovers: a target for each port of a pod, one without where it has none. And an evicted one."""

    def discovered(name: str, component: str, port: str, phase: str = "Running") -> dict[str, Any]:
        labels = {
            "__meta_kubernetes_namespace": namespace,
            "__meta_kubernetes_pod_name": name,
            "__meta_kubernetes_pod_phase": phase,
            "__meta_kubernetes_pod_label_app_kubernetes_io_component": component,
            "__meta_kubernetes_pod_container_port_name": port,
        }
        return {"targets": [f"10.0.0.1:{9000 + len(name)}"], "labels": labels}

    for file in ("web.yaml", "worker.yaml", "migrate.yaml"):
        for manifest in manifests(KUBERNETES / file):
            if manifest["kind"] in {"Deployment", "Job"}:
                name, template = manifest["metadata"]["name"], manifest["spec"]["template"]
                component = template["metadata"]["labels"]["app.kubernetes.io/component"]
                [container] = template["spec"]["containers"]
                for port in container.get("ports", [{"name": ""}]):
                    yield discovered(f"{name}-1", component, port["name"])
    yield discovered("slipway-web-evicted", "web", "http", "Failed")


def promtool(*arguments: str) -> str:
    """What Prometheus' own tool (Debian: prometheus) writes. Raises: AssertionError when it finds a fault."""
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    done = subprocess.run([tool, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def usable(expression: str) -> str:
    """What Grafana would make of it."""
    return expression.replace("$__rate_interval", "1m").replace("$instance", ".*")
