"""The house rules of who may import what, and the golden resource's shape, held by reading the code."""

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts
from sqlmodel import SQLModel

from app import models
from app.api import build_router
from app.api.dependencies import get_reading_session
from app.core.config import Settings
from app.core.db.database import async_get_db
from app.core.setup import create_application

APP = Path(__file__).parents[1] / "src" / "app"
ROUTERS = [import_module(f"app.api.v1.{file.stem}") for file in (APP / "api" / "v1").glob("[!_]*.py")]


def imports_of(file: Path) -> Iterator[str]:
    """The modules a file imports, by their full names."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute here"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers_of(*packages: str) -> set[str]:
    """The files under `app/` that import any of these packages."""
    return {
        str(file.relative_to(APP))
        for file in APP.rglob("*.py")
        if any(name == package or name.startswith(f"{package}.") for name in imports_of(file) for package in packages)
    }


def test_core_points_down_only() -> None:
    upwards = importers_of("app.api", "app.crud", "app.models", "app.middleware", "app.main")
    in_core = {file for file in upwards if file.startswith("core/") and not file.startswith("core/worker/")}
    # create_application() adds the middleware its settings ask for: docs/decisions/0003.
    assert in_core == {"core/setup.py"}
    assert "core/setup.py" not in importers_of("app.api", "app.crud", "app.models")


def test_models_and_crud_do_not_know_http() -> None:
    upwards = importers_of("app.api", "app.middleware", "fastapi")
    assert not {file for file in upwards if file.startswith(("models/", "crud/"))}


def test_only_main_knows_all_parts() -> None:
    assert importers_of("app.main") == set()


def test_arq_has_two_doors() -> None:
    files = importers_of("arq")
    assert {file for file in files if not file.startswith("core/worker/")} == {"core/utils/queue/arq_pool.py"}


def test_redis_has_two_doors() -> None:
    files = importers_of("redis")
    assert {file for file in files if not file.startswith("core/utils/")} == {"core/setup.py"}


def test_core_utils_are_the_three_adapters_and_what_they_share() -> None:
    """docs/decisions/0009-one-shared-connection.md"""
    found = {file.stem for file in (APP / "core" / "utils").iterdir() if not file.stem.startswith("__")}
    assert found == {"cache", "queue", "rate_limit", "redis_link"}


def test_only_the_edge_commits() -> None:
    committing = {
        str(file.relative_to(APP)) for file in APP.rglob("*.py") if ".commit()" in file.read_text(encoding="utf-8")
    }
    assert committing == {"core/db/database.py"}


def test_handlers_name_their_dependencies() -> None:
    """No bare `Depends(` in a signature: it would hide under which name the house knows the dependency."""
    for file in (APP / "api" / "v1").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef):
                assert "Depends" not in ast.unparse(node.args), f"{file.name}: {node.name}"


def test_handlers_stay_short_and_documented() -> None:
    for file in (APP / "api" / "v1").glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.AsyncFunctionDef) and node.decorator_list:
                assert ast.get_docstring(node), f"{file.name}: {node.name} lacks its line for the API's documentation"
                assert len(node.body) <= 9, f"{file.name}: {node.name}"


def test_middleware_is_pure_asgi() -> None:
    assert importers_of("starlette.middleware.base") == set()


def test_every_router_is_mounted() -> None:
    """Those that a setting's value switches on have only to be included in `build_router`, below an `if`."""
    assert len(ROUTERS) > 10
    settings = Settings()
    app = create_application(build_router(settings), settings)
    mounted = {
        route.endpoint for route in iter_route_contexts(app.routes) if isinstance(route.original_route, APIRoute)
    }
    switched = switched_by_a_value((APP / "api" / "__init__.py").read_text())
    for module in ROUTERS:
        name = module.__name__.rpartition(".")[2]
        for route in module.router.routes:
            assert isinstance(route, APIRoute)
            assert route.endpoint in mounted or name in switched, (
                f"{module.__name__} is not mounted: add `limited.include_router({name}.router)` to build_router() in "
                "src/app/api/__init__.py. Where a setting switches it on, write that below `if settings.THE_SETTING:`."
            )


def switched_by_a_value(source: str) -> set[str]:
    """The names that `build_router` has only below an `if` that asks for more than groups of settings."""
    (function,) = [
        node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == "build_router"
    ]
    found: dict[bool, set[str]] = {True: set(), False: set()}

    def look(node: ast.AST, *, below: bool) -> None:
        if isinstance(node, ast.Name):
            found[below].add(node.id)
        for child in ast.iter_child_nodes(node):
            is_switch = isinstance(node, ast.If | ast.IfExp) and not asks_for_groups_only(node.test)
            look(child, below=below or is_switch)

    look(function, below=False)
    return found[True] - found[False]


def asks_for_groups_only(test: ast.expr) -> bool:
    """Whether a condition consists of `settings.inherits(...)`, and so holds for the whole `Settings`."""
    if isinstance(test, ast.BoolOp):
        return all(map(asks_for_groups_only, test.values))
    return isinstance(test, ast.Call) and ast.unparse(test.func) == "settings.inherits"


@pytest.mark.parametrize(
    ("condition", "is_switch"),
    [
        ("settings.inherits(A)", False),
        ("settings.inherits(A, B) and settings.inherits(C)", False),
        ("settings.SHOP_ENABLED", True),
        ("settings.inherits(A) and settings.SHOP_MODE == 'live'", True),
        ("not settings.inherits(A)", True),
        ("getattr(settings, 'SHOP_ENABLED', False)", True),
    ],
)
def test_what_a_value_switches(condition: str, is_switch: bool) -> None:
    source = f"""
def build_router(settings):
    limited.include_router(users.router)
    if {condition}:
        for resource in (shop, users):
            limited.include_router(resource.router)
"""
    assert ("shop" in switched_by_a_value(source)) is is_switch
    assert "users" not in switched_by_a_value(source)
    source = f"def build_router(settings):\n    for one in [shop] if {condition} else []: include(one.router)"
    assert ("shop" in switched_by_a_value(source)) is is_switch


def test_every_table_is_in_the_migrations_metadata() -> None:
    """A table class that `models/__init__.py` does not import would be invisible to autogenerate."""
    defined = {
        node.name
        for file in APP.rglob("*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef) and any(keyword.arg == "table" for keyword in node.keywords)
    }
    for name in sorted(defined - set(models.__all__)):
        pytest.fail(f'src/app/models/__init__.py: import {name}, and add "{name}" to __all__')
    for name in sorted(defined):
        assert getattr(models, name).__table__.key in SQLModel.metadata.tables, name


@pytest.mark.parametrize("file", ["models/tier.py", "crud/crud_tier.py", "api/v1/tiers.py"])
def test_the_golden_resource_has_the_same_stem_everywhere(file: str) -> None:
    assert (APP / file).exists()
    assert (Path(__file__).parent / "api" / "v1" / "test_tiers.py").exists()


def test_a_table_is_never_a_response_model() -> None:
    settings = Settings()
    app = create_application(build_router(settings), settings)
    tables = [getattr(models, name) for name in models.__all__]
    for route in iter_route_contexts(app.routes):
        if isinstance(route.original_route, APIRoute):
            assert route.response_model not in tables, route.path


def test_no_route_holds_two_connections_of_one_pool() -> None:
    """Each waits for another's second connection, once all have their first: nobody goes on."""

    def sessions_of(dependant: Dependant) -> set[object]:
        found = {dependant.call} & {async_get_db, get_reading_session}
        return found.union(*map(sessions_of, dependant.dependencies))

    routes = [route for route in iter_route_contexts(build_router(Settings()).routes) if hasattr(route, "dependant")]
    assert any(get_reading_session in sessions_of(route.dependant) for route in routes)
    assert [route.path for route in routes if len(sessions_of(route.dependant)) > 1] == []
