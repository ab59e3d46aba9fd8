"""A replica that is well, one that lags, one without its primary, and servers that are none."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import quote

import pytest

from app.core.config import Settings
from app.core.db.replica import REMEMBERED
from app.core.doctor import Finding, Outcome, database_facts
from app.core.doctor.replica import judge_lag
from scripts.embedded import Postgres, free_port, scratch_folder
from scripts.unprivileged import data_folder
from tests.conftest import a_postgres
from tests.doctor_kit import BEYOND, FAILED, OK, WARNING, Settle, in_database, lines
from tests.postgres_topologies import standby_of

pytestmark = pytest.mark.anyio


async def test_a_replica(settle: Settle, postgres: Postgres, database: str) -> None:
    with standby_of(postgres) as standby:
        url = f"postgresql://tester:{quote(os.environ['POSTGRES_PASSWORD'])}@{BEYOND}:{standby.port}/{database}"
        found = await lines(settle(POSTGRES_READ_URL=url))
        assert outcomes({check: line for check, line in found.items() if "replica" in check}, "replica: TLS") == {OK}
        assert found["replica: origin"].text == "a replica of the primary"
        assert found["replica: TLS"].outcome is WARNING

        found = await lines(settle(POSTGRES_POOL_SIZE=500))
        assert found["replica: connections"].outcome is FAILED
        settle(POSTGRES_POOL_SIZE=10)

        # What is not flushed is sent to nobody, and these servers take their time by default.
        await in_database(database, "SET synchronous_commit = on; CREATE TABLE new (number int)")
        await _lag_once(settle(), lambda lag: lag.text == "it has all that the primary has")
        await asyncio.to_thread(standby.pause)
        await in_database(database, "SET synchronous_commit = on; DROP TABLE new")
        lag = (await lines(settle()))["replica: lag"]
        assert "bytes behind the primary; it has taken over the last transaction" in lag.text
        assert lag.outcome is OK  # It is paused for less than seconds.
        await asyncio.to_thread(standby.resume)

        assert postgres.process is not None
        postgres.process.send_signal(signal.SIGSTOP)
        try:
            found = await lines(settle())
        finally:
            postgres.process.send_signal(signal.SIGCONT)
        of_replica = {check: line.outcome for check, line in found.items() if "replica" in check}
        assert found["database"].outcome is FAILED
        assert of_replica.pop("replica: origin") is of_replica.pop("replica: lag") is WARNING
        assert of_replica == {
            "replica": OK,
            "replica: TLS": WARNING,
            "replica: connections": OK,
            "clock: replica": OK,
        }

        found = await lines(settle(POSTGRES_SERVER="127.0.0.1", POSTGRES_URL=url))
        assert found["database: writing"].outcome is FAILED
        assert "POSTGRES_READ_URL" in found["database: writing"].remedy


def outcomes(found: dict[str, Finding], *but: str) -> set[Outcome]:
    """How all checks ended whose names do not begin with one of these."""
    return {finding.outcome for check, finding in found.items() if not check.startswith(but or ("nothing",))}


async def test_a_replica_that_has_lost_its_primary(settle: Settle, postgres: Postgres, database: str) -> None:
    with standby_of(postgres) as standby:
        url = f"postgresql://tester:{quote(os.environ['POSTGRES_PASSWORD'])}@127.0.0.1:{standby.port}/{database}"
        assert (await lines(settle(POSTGRES_READ_URL=url)))["replica: lag"].text == "it has all that the primary has"

        await asyncio.to_thread(standby.ask, "ALTER SYSTEM SET primary_conninfo = ''")
        await asyncio.to_thread(standby.ask, "SELECT pg_reload_conf()")
        await in_database(database, "CREATE TABLE new (number int)")
        found = await _lag_once(settle(), lambda lag: "bytes behind" in lag.text and lag.outcome is WARNING)
        assert "is not connected to where its log comes from" in found.text
        assert "primary_conninfo" in found.remedy


async def _lag_once(settings: Settings, holds: Callable[[Finding], bool]) -> Finding:
    """The finding, as soon as it is such."""
    patience = time.monotonic() + 20
    while not holds(found := (await lines(settings))["replica: lag"]):
        assert time.monotonic() < patience, found
    return found


async def test_a_replica_that_is_none(settle: Settle, postgres: Postgres, database: str) -> None:
    password = quote(os.environ["POSTGRES_PASSWORD"])
    itself = f"postgresql://tester:{password}@127.0.0.1:{postgres.port}/{database}"
    found = (await lines(settle(POSTGRES_READ_URL=itself)))["replica: origin"]
    assert (found.outcome, found.is_certain) == (WARNING, False)

    with scratch_folder() as folder, a_postgres(data_folder(folder / "other"), free_port()) as other:
        url = f"postgresql://tester:{password}@127.0.0.1:{other.port}/tester"
        found = (await lines(settle(POSTGRES_READ_URL=url)))["replica: origin"]
    assert (found.outcome, found.is_certain) == (FAILED, True)
    assert "have POSTGRES_READ_URL name a streaming replica" in found.remedy

    found = (await lines(settle()))["replica"]
    assert found.outcome is FAILED
    assert "correct POSTGRES_READ_URL" in found.remedy


@pytest.mark.parametrize(
    ("seconds", "position", "is_receiving", "outcome"),
    [
        (0.5, 100, True, OK),
        (60, 100, True, WARNING),
        (REMEMBERED + 1, 100, True, FAILED),
        (None, 100, True, WARNING),  # It has taken over nothing since its start.
        (REMEMBERED + 1, 200, True, OK),  # Nobody has written anything since.
        (REMEMBERED + 1, 200, False, WARNING),
        (0.5, 100, False, WARNING),
        (REMEMBERED + 1, 100, False, FAILED),
    ],
)
async def test_a_lag(
    settle: Settle, seconds: float | None, position: int, is_receiving: bool, outcome: Outcome
) -> None:
    primary = replace(await database_facts.ask(settle()), position=200)
    facts = replace(primary, is_replica=True, lag=seconds, position=position, is_receiving=is_receiving)
    assert judge_lag(facts, primary).outcome is outcome
