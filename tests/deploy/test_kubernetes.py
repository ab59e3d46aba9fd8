"""The Kubernetes manifests: what refers to what, and to what there really is."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.core.config import Settings
from app.core.doctor import Fleet
from app.core.settings.errors import variables_of
from tests.deploy.compose_names import SECRETS
from tests.deploy.files import DOCKERFILE, KUBERNETES, manifests
from tests.deploy.image import instructions

KUSTOMIZATION = manifests(KUBERNETES / "kustomization.yaml")[0]
OBJECTS = [
    manifest
    for path in sorted(KUBERNETES.glob("*.yaml"))
    if path.name not in {"kustomization.yaml", "prometheus-adapter.yaml"}
    for manifest in manifests(path)
]
WORKLOADS = [found for found in OBJECTS if found["kind"] in {"Deployment", "Job"}]
by_name = pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload["metadata"]["name"])

KUBECTL = shutil.which("kubectl")
COMPONENT = "app.kubernetes.io/component"


def one(kind: str, name: str = "slipway-web") -> dict[str, Any]:
    (found,) = (found for found in OBJECTS if (found["kind"], found["metadata"]["name"]) == (kind, name))
    return found


def pod_of(workload: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = workload["spec"]["template"]["spec"]
    return spec


def container_of(workload: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod_of(workload)["containers"]
    found: dict[str, Any] = container
    return found


def test_every_file_is_a_resource() -> None:
    """But for the ingress, which is a choice, and the adapter's rule, which is no object."""
    files = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(KUSTOMIZATION["resources"]) == files - {"ingress.yaml", "prometheus-adapter.yaml"}
    for generator in (*KUSTOMIZATION["configMapGenerator"], *KUSTOMIZATION["secretGenerator"]):
        for name in generator["envs"]:
            assert (KUBERNETES / name).exists() or (KUBERNETES / f"{name}.example").exists()


@by_name
def test_pods_may_do_little(workload: dict[str, Any]) -> None:
    pod, container = pod_of(workload), container_of(workload)
    image_user = dict(instructions(DOCKERFILE.read_text()))["USER"]
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert f"{security['runAsUser']}:{security['runAsGroup']}" == image_user
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert "memory" in container["resources"]["limits"]
    assert container["image"] == KUSTOMIZATION["images"][0]["name"]


@by_name
def test_settings_and_secrets_come_from_what_is_generated(workload: dict[str, Any]) -> None:
    sources = container_of(workload)["envFrom"]
    assert sources == [
        {"configMapRef": {"name": KUSTOMIZATION["configMapGenerator"][0]["name"]}},
        {"secretRef": {"name": KUSTOMIZATION["secretGenerator"][0]["name"]}},
    ]
    assert "env" not in container_of(workload)


def test_every_variable_is_a_setting_and_no_secret_has_a_value() -> None:
    settings = pairs((KUBERNETES / "settings.env").read_text())
    secrets = pairs((KUBERNETES / "secrets.env.example").read_text())
    known = set(variables_of(Settings)) | {"EMBEDDED_SERVICES"}
    assert set(settings) | set(secrets) <= known
    assert not set(settings) & set(secrets)
    assert set(secrets.values()) == {""}
    assert not set(settings) & SECRETS, "Secrets belong in deploy/kubernetes/secrets.env.example, without a value."
    assert settings["ENVIRONMENT"] == "production"


def pairs(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))


@by_name
def test_selectors_match_labels(workload: dict[str, Any]) -> None:
    labels = workload["spec"]["template"]["metadata"]["labels"]
    assert labels == workload["metadata"]["labels"]
    if workload["kind"] == "Deployment":
        assert workload["spec"]["selector"]["matchLabels"] == labels
    for spread in pod_of(workload).get("topologySpreadConstraints", ()):
        assert spread["labelSelector"]["matchLabels"] == labels


def test_what_points_at_the_servers_finds_them() -> None:
    web = one("Deployment")
    labels = web["spec"]["template"]["metadata"]["labels"]
    service = one("Service")
    assert service["spec"]["selector"] == labels
    ports = {port["name"] for port in container_of(web)["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    assert one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    scaler = one("HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "slipway-web"}
    assert "replicas" not in web["spec"]
    assert scaler["minReplicas"] > one("PodDisruptionBudget")["spec"]["minAvailable"]
    backend = one("Ingress")["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend["name"] == "slipway-web"
    assert backend["port"]["name"] in {port["name"] for port in service["spec"]["ports"]}


def test_it_scales_by_a_metric_that_the_adapter_makes_of_ours() -> None:
    (rule,) = manifests(KUBERNETES / "prometheus-adapter.yaml")[0]["rules"]["custom"]
    (metric,) = one("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    assert rule["seriesQuery"].startswith("slipway_http_requests_total{")


def test_a_release_loses_no_request() -> None:
    web = one("Deployment")
    assert web["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    settings = pairs((KUBERNETES / "settings.env").read_text())
    delay = int(settings["SHUTDOWN_DELAY_SECONDS"])
    container = container_of(web)
    ready = container["readinessProbe"]
    assert ready["httpGet"] == {"path": "/api/v1/ready", "port": "http"}
    for probe in ("livenessProbe", "startupProbe"):
        assert container[probe]["httpGet"] == {"path": "/api/v1/health", "port": "http"}
    # Then 3 seconds for connections, 10 for requests, and 5 to close.
    assert pod_of(web)["terminationGracePeriodSeconds"] > delay + 18


@pytest.mark.parametrize("name", ["slipway-worker", "slipway-long-worker"])
def test_workers_say_whether_they_live(name: str) -> None:
    settings = pairs((KUBERNETES / "settings.env").read_text())
    container = container_of(one("Deployment", name))
    (port,) = container["ports"]
    assert str(port["containerPort"]) == settings["WORKER_METRICS_PORT"]
    for probe in ("livenessProbe", "startupProbe"):
        assert container[probe]["httpGet"] == {"path": "/metrics", "port": port["name"]}
    # A worker gives its jobs ten seconds.
    assert pod_of(one("Deployment", name))["terminationGracePeriodSeconds"] > 10


def test_it_says_how_many_connections_postgresql_needs(settings: Settings) -> None:
    values = pairs((KUBERNETES / "settings.env").read_text())
    pool = int(values.get("POSTGRES_POOL_SIZE", Settings.model_fields["POSTGRES_POOL_SIZE"].default))
    usual = settings.model_copy(update={"POSTGRES_POOL_SIZE": pool})
    scaler = one("HorizontalPodAutoscaler")["spec"]
    surge = one("Deployment")["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
    workers = one("Deployment", "slipway-worker")["spec"]["replicas"]
    long_workers = one("Deployment", "slipway-long-worker")["spec"]["replicas"]
    least, _ = Fleet(scaler["minReplicas"], workers, long_workers).connections(usual)
    most, _ = Fleet(scaler["maxReplicas"], workers, long_workers).connections(usual)
    released, _ = Fleet(scaler["maxReplicas"] + surge, workers + 1, long_workers + 1).connections(usual)
    said = " ".join(line.lstrip("# ") for line in (KUBERNETES / "kustomization.yaml").read_text().splitlines())
    web, least_web = scaler["maxReplicas"], scaler["minReplicas"]
    assert f"{web} web pods, {workers} workers and {long_workers} long worker hold {most};" in said
    assert f"they hold {released + 1} with the migration." in said
    assert f"The least, with {least_web} web pods, is {least}." in said
    (room,) = re.findall(r"max_connections=(\d+)", said)
    assert released + 1 + 10 < int(room)  # 10: PostgreSQL's own, and whoever looks


def test_kustomize_makes_of_it_what_is_meant(tmp_path: Path) -> None:
    """As far as one can tell without it, and with it where it is installed."""
    folder = shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    shutil.copy(folder / "secrets.env.example", folder / "secrets.env")
    made = [found for name in KUSTOMIZATION["resources"] for found in manifests(folder / name)]
    image = KUSTOMIZATION["images"][0]
    expected = image["name"]
    if KUBECTL is not None:
        done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=True)
        made = list(yaml.safe_load_all(done.stdout))
        expected = f"{image['newName']}:{image['newTag']}"
        assert {found["kind"] for found in made} >= {"ConfigMap", "Secret"}
        assert all(found["metadata"].get("namespace", "slipway") == "slipway" for found in made)
    workloads = [found for found in made if found["kind"] in {"Deployment", "Job"}]
    assert {container_of(workload)["image"] for workload in workloads} == {expected}
    assert len(workloads) == len(WORKLOADS)


def test_every_object_is_part_of_the_app() -> None:
    for found in OBJECTS:
        component = found["metadata"]["labels"].get(COMPONENT, "")
        known = component in {"web", "worker", "migrate", "settings"} or component.endswith("-worker")
        name = found["metadata"]["name"]
        assert known, f"give {name} the label {COMPONENT}: web, worker, migrate, settings, or a name ending in -worker"
