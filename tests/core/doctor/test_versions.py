"""Servers that are too old for us."""

from dataclasses import replace

import pytest

from app.core.doctor import database_facts, valkey_facts
from app.core.doctor.database import judge_version
from app.core.doctor.valkey import judge_server, servers_of
from tests.doctor_kit import FAILED, OK, Settle

pytestmark = pytest.mark.anyio


async def test_servers_that_are_too_old(settle: Settle) -> None:
    facts = await database_facts.ask(settle())
    old = judge_version(replace(facts, version=130_020, version_name="13.20"))
    assert (judge_version(facts).outcome, old.outcome, old.is_certain) == (OK, FAILED, True)
    assert "upgrade to PostgreSQL 14" in old.remedy

    (used,) = servers_of(settle())
    (answered,) = await valkey_facts.ask(used.url)
    assert answered.info is not None
    of_redis = {"redis_version": "6.2.14", "role": "master"}
    assert [finding.outcome for finding in judge_server(used, answered)] == [OK]
    (old,) = judge_server(used, replace(answered, info=of_redis))
    assert old.outcome is FAILED
    assert "run Redis 7 or newer, or any Valkey" in old.remedy
