"""`docker compose up`: its services as processes, in the order in which they wait for each other.

There is no Docker engine: volumes are folders, and the names of servers are addresses of this machine.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path

import httpx2
import pytest
from dotenv import dotenv_values

from app.core.config import SettingsError
from scripts.compose_settings import DATABASE_FILES, settings_of
from scripts.embedded import Postgres, Valkey, free_port, scratch_folder
from scripts.unprivileged import data_folder
from tests.deploy.compose_names import is_ours
from tests.deploy.files import COMPOSE, services, words_of
from tests.deploy.image import EVERYWHERE, Image, image_in
from tests.processes import BIN, ROOT, START_SECONDS, wait_for_answer

SERVICES = services(COMPOSE)


@dataclass
class Up:
    """One `docker compose up`.

    Attributes:
        image: the image that our services run.
        volumes: the folder with a folder for each named volume.
        env_file: what `src/.env` has, None where there is none.
        printed: what the one-shot services have said, by their name.
        url: where the API is.
    """

    image: Image
    volumes: Path
    env_file: Mapping[str, str] | None = None
    printed: dict[str, str] = field(default_factory=dict)
    url: str = ""

    @contextmanager
    def started(self) -> Iterator["Up"]:
        """Everything runs, but for the workers, in the order that `depends_on` says."""
        order = TopologicalSorter({name: service.get("depends_on", {}) for name, service in SERVICES.items()})
        with ExitStack() as stack:
            self._addresses: dict[str, int] = {}
            for name in order.static_order():
                service = SERVICES[name]
                if name == "redis":
                    valkey = Valkey(self._volume("redis-data"), port=free_port(), durable=False)
                    self._addresses[name] = stack.enter_context(valkey).port
                elif name == "db":
                    self._addresses[name] = stack.enter_context(self._postgres()).port
                elif name == "web":
                    stack.enter_context(self._web())
                elif service["restart"] == "no":
                    self.printed[name] = self._run(name)
            yield self

    def environment(self, name: str) -> dict[str, str]:
        """The variables of a service: `environment` wins over `env_file`, and that over the image."""
        service = SERVICES[name]
        if not is_ours(service):
            given: dict[str, str] = {}
        else:
            assert [file["path"] for file in service["env_file"]] == ["./src/.env"]
            given = {**self.image.environment, **(self.env_file or {})}
        return {
            variable: self._here(name, value) for variable, value in {**given, **service["environment"]}.items()
        } | {
            variable.replace("_HOST", "_PORT").replace("_SERVER", "_PORT"): str(self._addresses[value])
            for variable, value in service["environment"].items()
            if value in self._addresses
        }

    def _here(self, name: str, value: str) -> str:
        """A value with this machine's paths and addresses in it."""
        for mount in SERVICES[name]["volumes"]:
            volume, target, *_ = mount.split(":")
            if (not volume.startswith(".") and value.startswith(f"{target}/")) or value == target:
                return value.replace(target, str(self._volume(volume)), 1)
        return "127.0.0.1" if value in {"db", "redis"} else value

    def _volume(self, name: str) -> Path:
        assert name in {"postgres-data", "redis-data", "app-settings", "database-settings"}
        return data_folder(self.volumes / name)

    def _run(self, name: str) -> str:
        words = words_of(SERVICES[name]["command"])
        done = subprocess.run(
            [BIN / words[0], *words[1:]],
            cwd=self.image.workdir,
            env=self.environment(name),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (
            f"{name} ends with {done.returncode}: {done.stdout}{done.stderr}"
            "(A setting without a default needs a value in src/.env.example.)"
        )
        return done.stdout

    def _postgres(self) -> Postgres:
        files = self.environment("db")
        user, password, database = (
            Path(files[f"POSTGRES_{name}_FILE"]).read_text() for name in ("USER", "PASSWORD", "DB")
        )
        data = self._volume("postgres-data")
        return Postgres(
            data / "cluster", port=free_port(), user=user, password=password, database=database, durable=False
        )

    @contextmanager
    def _web(self) -> Iterator[None]:
        port = free_port()
        words = words_of(SERVICES["web"]["command"].replace(EVERYWHERE, "127.0.0.1").replace("8000", str(port)))
        words.remove("--reload")
        server = subprocess.Popen([BIN / words[0], *words[1:]], cwd=self.image.workdir, env=self.environment("web"))
        try:
            self.url = f"http://127.0.0.1:{port}/api/v1"
            wait_for_answer(f"{self.url}/ready", server)
            yield
        finally:
            server.terminate()
            server.wait(START_SECONDS)

    def signs_in(self, password: str) -> bool:
        """Whether the first superuser does with this password."""
        answer = httpx2.post(f"{self.url}/login", data={"username": "admin", "password": password})
        return answer.status_code == 200


@pytest.fixture(scope="module")
def mounted() -> Iterator[Image]:
    """The image with `./src` mounted over its files, which lack the example."""
    with scratch_folder() as folder:
        image = image_in(folder)
        shutil.copy(ROOT / "src" / ".env.example", image.workdir / "src")
        yield image


def password_in(text: str) -> str:
    found = re.search(r"password +(\S.*)", text)
    assert found is not None, text
    return found[1]


def test_a_fresh_clone(mounted: Image) -> None:
    """And what comes later: a second start, and a file that `make run` has written, with other secrets."""
    with scratch_folder() as volumes:
        first = Up(mounted, volumes)
        with first.started():
            password = password_in(first.printed["settings"])
            assert first.signs_in(password)
            assert first.printed["create_superuser"] == "Superuser admin created.\n"
            tiers = httpx2.get(f"{first.url}/tiers").json()
            assert [tier["name"] for tier in tiers["data"]] == ["free"]
        kept = dotenv_values(volumes / "app-settings" / ".env")
        assert kept["TIER_NAME"] == "free"  # of the example

        secrets = {"POSTGRES_PASSWORD": "another-one", "ADMIN_PASSWORD": "another-one", "POSTGRES_USER": "another"}
        again = Up(mounted, volumes, env_file={**secrets, "SECRET_KEY": "0123456789abcdef" * 4, "APP_NAME": "Shop"})
        with again.started():
            assert again.printed["create_superuser"] == "Superuser admin exists already.\n"
            assert password_in(again.printed["settings"]) == password
            assert again.signs_in(password)
            assert not again.signs_in("another-one")
        assert dotenv_values(volumes / "app-settings" / ".env") == kept


def test_a_file_with_secrets_is_used_from_the_first_start_on(mounted: Image) -> None:
    secrets = {
        "POSTGRES_PASSWORD": 'it\'s "quoted" \\ # so',
        "ADMIN_PASSWORD": "horse's battery",
        "POSTGRES_DB": "shop",
    }
    with scratch_folder() as volumes:
        up = Up(mounted, volumes, env_file=secrets)
        with up.started():
            assert up.signs_in(secrets["ADMIN_PASSWORD"])
            assert secrets["ADMIN_PASSWORD"] not in up.printed["settings"]
            assert "ADMIN_PASSWORD of src/.env" in up.printed["settings"]


def test_nothing_is_generated_outside_of_local() -> None:
    for environment in ("production", "staging"):
        with pytest.raises(SettingsError) as stopped:
            settings_of({}, {"ENVIRONMENT": environment, "POSTGRES_PASSWORD": "x"})
        assert stopped.value.code == (
            "SECRET_KEY and ADMIN_PASSWORD must be set in src/.env: secrets are generated for ENVIRONMENT=local only."
        )
    complete = {
        "ENVIRONMENT": "production",
        **dict.fromkeys(("SECRET_KEY", "POSTGRES_PASSWORD", "ADMIN_PASSWORD"), "x"),
    }
    assert settings_of({"ENVIRONMENT": "local"}, complete)["ADMIN_PASSWORD"] == "x"


def test_only_the_file_of_the_database_s_login_is_in_its_volume() -> None:
    assert set(DATABASE_FILES) == {"POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB"}
    mounts = SERVICES["db"]["volumes"]
    assert "app-settings" not in {mount.partition(":")[0] for mount in mounts}
