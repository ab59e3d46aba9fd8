"""The compose files, before and after every switch that the founding document describes."""

import re
from typing import Any

import pytest
import yaml

from tests.deploy.compose_names import POSTGRES_FILES, POSTGRES_OWN, SECRETS, VARIABLES, is_ours, unknown_names
from tests.deploy.files import (
    COMPOSE,
    COMPOSE_PROD,
    WITH_NGINX,
    commented,
    services,
    uncommented,
    with_lines_uncommented,
    words_of,
)
from tests.processes import ROOT

ONE_SHOT = {"settings", "migrate", "create_superuser", "create_tier"}
UVICORN = "command: uvicorn"
GUNICORN = "command: gunicorn"


def text() -> str:
    return COMPOSE.read_text()


def with_everything() -> str:
    """All blocks that can be uncommented, uncommented."""
    return uncommented(text(), WITH_NGINX)


ALL = pytest.mark.parametrize(
    "compose", [text(), with_everything(), COMPOSE_PROD.read_text()], ids=["as it is", "with everything", "production"]
)


@ALL
def test_compose_knows_every_name(compose: str) -> None:
    assert unknown_names(yaml.safe_load(compose)) == []
    wrong = re.sub(r"healthcheck:\n( +)test:", r"healthcheck:\n\1tests:", compose.replace("restart:", "restarts:"))
    found = unknown_names(yaml.safe_load(wrong))
    assert {name.rpartition(".")[2] for name in found} == {"tests", "restarts"}


@ALL
def test_one_service_builds_the_image_and_nobody_looks_for_it_elsewhere(compose: str) -> None:
    """Compose builds what has `build` all at once, and then they would all write one image."""
    for name, service in services(compose).items():
        if is_ours(service):
            assert service["pull_policy"] == ("build" if name == "migrate" else "never"), name
            assert ("build" in service) == (name == "migrate"), name
        else:
            assert not {"build", "pull_policy"} & set(service), name


@ALL
def test_no_anchor_is_for_nothing(compose: str) -> None:
    for anchor in re.findall(r"&(\w+)", compose):
        assert re.search(rf"\*{anchor}\b", compose), anchor


@ALL
def test_every_service_is_looked_after(compose: str) -> None:
    for name, service in services(compose).items():
        if name in ONE_SHOT:
            assert service["restart"] == "no", name
            assert "command" in service
            continue
        assert service["restart"] == "unless-stopped", name
        is_server = is_ours(service) and "worker" not in name
        assert is_server or "healthcheck" in service, name  # A server has the image's.


@ALL
def test_every_variable_means_something(compose: str) -> None:
    for name, service in services(compose).items():
        known = VARIABLES | POSTGRES_FILES if is_ours(service) or name == "db" else {"PASSWORD"}
        assert set(service.get("environment", {})) <= known, name


@ALL
def test_there_is_no_secret(compose: str) -> None:
    for name, service in services(compose).items():
        for variable, value in service.get("environment", {}).items():
            if value and variable not in POSTGRES_FILES and re.search("PASSWORD|SECRET|TOKEN", variable):
                assert re.fullmatch(r"\$\{\w+:\?\}", value), (name, variable)
            assert not re.search(r"://[^$]*:[^$@{]+@", value), (name, variable)


@ALL
def test_every_image_says_which_version(compose: str) -> None:
    for name, service in services(compose).items():
        tag = service["image"].partition(":")[2]
        assert tag not in {"", "latest"}, name


@ALL
def test_what_is_waited_for_exists_and_says_when_it_is_ready(compose: str) -> None:
    found = services(compose)
    for name, service in found.items():
        waits = service.get("depends_on", {})
        for other, how in waits.items() if isinstance(waits, dict) else ():
            expected = "service_completed_successfully" if other in ONE_SHOT else "service_healthy"
            assert how["condition"] == expected, (name, other)
            assert other in found
        if is_ours(service) and name not in {"migrate", "settings"}:
            assert "migrate" in waits, name


@ALL
def test_what_is_mounted_exists(compose: str) -> None:
    for service in services(compose).values():
        for mount in service.get("volumes", ()):
            if mount.startswith("."):
                assert (ROOT / mount.partition(":")[0]).exists(), mount


def test_the_database_gets_none_of_the_app_s_secrets() -> None:
    assert set(services(COMPOSE)["db"]["environment"]) == POSTGRES_FILES
    assert "env_file" not in services(COMPOSE)["db"]
    assert set(services(COMPOSE_PROD)["db"]["environment"]) == POSTGRES_OWN
    assert {"POSTGRES_PASSWORD"} == POSTGRES_OWN & SECRETS


def test_a_fresh_clone_needs_no_file_and_production_does() -> None:
    for name, service in services(COMPOSE).items():
        for file in service.get("env_file", ()):
            assert file["required"] is False, name
    assert ":?}" in COMPOSE_PROD.read_text()
    assert not {"settings", "create_superuser"} & set(services(COMPOSE_PROD))


def test_the_file_of_make_run_is_not_read_in_containers() -> None:
    """Only its owner may read it, who is another user in a container: Compose passes its values on."""
    for name, service in services(COMPOSE).items():
        if is_ours(service):
            folder, _, file = service["environment"]["ENV_FILE"].rpartition("/")
            assert file == ".env", name
            assert [mount for mount in service["volumes"] if mount.split(":")[1] == folder], name


def test_workers_are_there_for_both_queues() -> None:
    for path in (COMPOSE, COMPOSE_PROD):
        commands = " ".join(str(service.get("command")) for service in services(path).values())
        for worker in ("WorkerSettings", "LongWorkerSettings"):
            assert f"arq src.app.core.worker.settings.{worker}" in commands


# ---- The switches ----


def web(compose: str) -> dict[str, Any]:
    found: dict[str, Any] = services(compose)["web"]
    return found


def test_gunicorn_instead_of_uvicorn() -> None:
    assert web(text())["command"] == "uvicorn app.main:app --host 0.0.0.0 --port 8000 --reload"
    changed = with_lines_uncommented(commented(text(), UVICORN), GUNICORN)
    assert web(changed)["command"] == "gunicorn app.main:app -w 4 -k uvicorn.workers.UvicornWorker -b 0.0.0.0:8000"
    back = with_lines_uncommented(commented(changed, GUNICORN), UVICORN)
    assert back == text()


def test_nginx() -> None:
    assert "nginx" not in services(text())
    changed = uncommented(commented(text(), UVICORN, "ports:", '- "127.0.0.1:8000:8000"'), WITH_NGINX)
    changed = with_lines_uncommented(changed, "expose:", '  - "8000"')
    nginx = services(changed)["nginx"]
    assert nginx["ports"] == ["0.0.0.0:80:80"]
    assert nginx["volumes"] == ["./default.conf:/etc/nginx/conf.d/default.conf:ro"]
    assert nginx["depends_on"] == ["web"]
    assert "command" not in web(changed)  # The Dockerfile's is in force.
    assert "ports" not in web(changed)
    assert web(changed)["expose"] == ["8000"]
    # What nginx says about a caller is believed, and what nobody else does.
    assert nginx["networks"]["default"]["ipv4_address"] == web(changed)["environment"]["TRUSTED_PROXIES"]


@pytest.mark.parametrize(
    ("name", "script"), [("create_superuser", "create_first_superuser"), ("create_tier", "create_first_tier")]
)
def test_first_superuser_and_tier(name: str, script: str) -> None:
    assert words_of(services(COMPOSE)[name]["command"]) == ["python", "-m", f"src.scripts.{script}"]
