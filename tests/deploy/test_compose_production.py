"""docker-compose.prod.yml: what it closes, what there is room for, and how a release goes."""

import re
from ipaddress import ip_address, ip_network
from typing import Any

import yaml

from app.core.config import Settings
from app.core.doctor import Fleet
from tests.deploy.compose_names import SECRETS, VARIABLES, is_ours
from tests.deploy.files import COMPOSE_PROD, NGINX, services, words_of
from tests.processes import ROOT

SIZES = {"k": 2**10, "m": 2**20, "g": 2**30}  # bytes
ADDRESSED = ("nginx", "fastapi1", "fastapi2")


def found() -> dict[str, Any]:
    return services(COMPOSE_PROD)


def bytes_of(size: str) -> int:
    return int(size[:-1]) * SIZES[size[-1]]


def mounts_of(service: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The options of each tmpfs, by its folder."""
    mounts = (mount.partition(":") for mount in service.get("tmpfs", ()))
    return {folder: dict(option.split("=") for option in options.split(",") if option) for folder, _, options in mounts}


def test_production_is_closed() -> None:
    published = {name for name, service in found().items() if "ports" in service}
    assert published == {"nginx"}
    for name, service in found().items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["logging"]["options"]["max-size"], name
        assert is_ours(service) or service["user"].split(":")[0] not in {"", "0"}, name
        assert name == "migrate" or service["deploy"]["resources"]["limits"], name
    for name in ("db", "cache", "limits", "queue"):
        assert found()[name]["networks"] == ["inside"]
    for name in ("fastapi1", "fastapi2"):
        environment = found()[name]["environment"]
        assert environment["ENVIRONMENT"] == "production"
        assert environment["TRUSTED_PROXIES"] == found()["nginx"]["networks"]["edge"]["ipv4_address"]
        assert environment["SHUTDOWN_DELAY_SECONDS"] == "5"


def test_it_has_an_example_of_what_it_needs() -> None:
    example = (ROOT / "deploy/env.prod.example").read_text()
    given = dict(line.split("=", 1) for line in example.splitlines() if re.match(r"\w+=", line))
    assert set(re.findall(r"\$\{(\w+):\?\}", COMPOSE_PROD.read_text())) <= set(given)
    named = set(given) - {"REDIS_CACHE_PASSWORD", "REDIS_RATE_LIMIT_PASSWORD", "REDIS_QUEUE_PASSWORD"}
    assert named <= VARIABLES
    assert not [name for name in given if given[name] and name in SECRETS]
    assert not [name for name in given if given[name] and name not in VARIABLES]


def test_who_is_not_root_can_write_to_what_is_in_memory() -> None:
    """Docker makes it root's, with the mode that the folder has in the image, unless it is told whose it is."""
    for name, service in found().items():
        user, _, group = service.get("user", "").partition(":")
        for folder, options in mounts_of(service).items():
            if folder != "/tmp":  # noqa: S108 -- everybody's, in every image
                assert (options["uid"], options["gid"]) == (user, group), (name, folder)
                assert options["mode"], (name, folder)


def test_uploads_cannot_use_up_the_memory_of_nginx() -> None:
    """What waits in files is in memory too, and has a limit; so has what each connection may hold before."""
    nginx = found()["nginx"]
    limit = bytes_of(nginx["deploy"]["resources"]["limits"]["memory"])
    files = sum(bytes_of(options["size"]) for folder, options in mounts_of(nginx).items() if folder.startswith("/var"))
    (buffer,) = re.findall(r"^client_body_buffer_size (\w+);", (NGINX / "proxy.conf").read_text(), re.MULTILINE)
    assert files
    assert files + 1024 * bytes_of(buffer) < limit * 3 / 4  # 1024: worker_connections of the image


def test_it_is_published_by_ipv4_alone() -> None:
    """By IPv6 all callers would have the address of Docker's own proxy."""
    ports = re.findall(r'^\s*(?:# )?- "(.+:\d+:\d+)"', COMPOSE_PROD.read_text(), re.MULTILINE)
    assert ports == ["0.0.0.0:80:80", "0.0.0.0:443:443"]


def test_what_nginx_needs_to_know_stays_when_a_server_is_replaced() -> None:
    """It looks names up when it starts."""
    conf = (NGINX / "many-servers.conf").read_text()
    assert re.findall(r"server (\w+):8000", conf) == list(ADDRESSED[1:])
    addresses = [ip_address(found()[name]["networks"]["edge"]["ipv4_address"]) for name in ADDRESSED]
    (edge,) = yaml.safe_load(COMPOSE_PROD.read_text())["networks"]["edge"]["ipam"]["config"]
    assert len(set(addresses)) == len(ADDRESSED)
    for address in addresses:
        assert address in ip_network(edge["subnet"])
        assert address not in ip_network(edge["ip_range"])
    for name in ADDRESSED[1:]:
        assert set(found()[name]["networks"]) == {"inside", "outwards", "edge"}
        assert "/api/v1/ready" in found()[name]["healthcheck"]["test"][-1]


def test_postgresql_has_room_for_all(settings: Settings) -> None:
    environment = found()["fastapi1"]["environment"]
    (each,) = re.findall(r":-(\d+)}", environment["WEB_CONCURRENCY"])
    usual = settings.model_copy(update={"POSTGRES_POOL_SIZE": Settings.model_fields["POSTGRES_POOL_SIZE"].default})
    needed, _ = Fleet(web=2 * int(each)).connections(usual)
    (room,) = re.findall(r"max_connections=(\d+)", " ".join(words_of(found()["db"]["command"])))
    assert needed + 10 < int(room)
    # The comment above it.
    web, worker, long_worker = re.findall(
        r"is (\d+), and (\d+) of a worker\s+# and (\d+) of", COMPOSE_PROD.read_text()
    )[0]
    assert int(web) + int(worker) + int(long_worker) == needed
