"""`make chaos`: its proxy does what it is told, its judgement is right, and its report says so."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chaos.faults import INJECTIONS
from chaos.journal import Journal, Register, Stale, over_admitted
from chaos.orders import NEVER, Order, of_faults
from chaos.outages import is_allowed, joined, outages, over_limit, overlap
from chaos.proxy import HOST, Fault, FaultProxy
from chaos.proxy_process import ProxyProcess, proxied
from chaos.report import FaultReport, table, verdict, write

from scripts.embedded import free_port, is_port_free
from tests.processes import IN_FULL, ROOT

pytestmark = pytest.mark.anyio

SOON = 10.0  # seconds, on a machine that is busy with other tests
A_WHILE = 0.2  # seconds in which nothing is to come
LATENCY = 0.15  # seconds
AWAY = '{"link": "cache", "why": "hung", "event": "redis is away", "timestamp": "2026-01-01T00:00:%02d.000000Z"}\n'
THERE = '{"link": "cache", "event": "redis is there", "timestamp": "2026-01-01T00:00:%02d.000000Z"}\n'

Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """A server that says what it is told. Yields its port."""

    async def repeat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data)
        writer.close()

    async with await asyncio.start_server(repeat, HOST, 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    async with echo() as target, FaultProxy(free_port(), target, LATENCY) as proxy:
        yield proxy


@asynccontextmanager
async def line_to(port: int) -> AsyncIterator[Line]:
    line = await asyncio.open_connection(HOST, port)
    try:
        yield line
    finally:
        line[1].close()


async def said(line: Line, words: bytes) -> bytes:
    """What comes back."""
    line[1].write(words)
    async with asyncio.timeout(SOON):
        return await line[0].read(1000)


async def hears_nothing(line: Line) -> bool:
    try:
        async with asyncio.timeout(A_WHILE):
            await line[0].read(1000)
    except TimeoutError:
        return True
    return False


# ---- The proxy ----


async def test_passes_on_what_comes_until_one_side_closes(proxy: FaultProxy) -> None:
    async with line_to(proxy.port) as line:
        assert await said(line, b"hello") == b"hello"
        assert await said(line, b"again") == b"again"
        assert proxy.connections == 1
        line[1].write_eof()
        async with asyncio.timeout(SOON):
            assert await line[0].read(1000) == b""
    async with asyncio.timeout(SOON):
        while proxy.connections:  # noqa: ASYNC110 -- the proxy tells nobody
            await asyncio.sleep(0.01)


async def test_down_closes_what_is_open_and_refuses_what_is_new(proxy: FaultProxy) -> None:
    async with line_to(proxy.port) as line:
        assert await said(line, b"hello") == b"hello"
        await proxy.switch(Fault.DOWN)
        async with asyncio.timeout(SOON):
            assert await line[0].read(1000) == b""
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(HOST, proxy.port)
    await proxy.switch(Fault.NONE)
    async with line_to(proxy.port) as line:
        assert await said(line, b"hello") == b"hello"


async def test_latency_delays_each_way_and_keeps_the_order(proxy: FaultProxy) -> None:
    async with line_to(proxy.port) as line:
        assert await said(line, b"hello") == b"hello"
        await proxy.switch(Fault.LATENCY)
        began = time.monotonic()
        line[1].write(b"one ")
        await line[1].drain()
        await asyncio.sleep(LATENCY / 3)
        await proxy.switch(Fault.NONE)
        line[1].write(b"two")
        heard = b""
        async with asyncio.timeout(SOON):
            while len(heard) < len(b"one two"):
                heard += await line[0].read(1000)
        assert heard == b"one two"
        assert time.monotonic() - began >= LATENCY
        await proxy.switch(Fault.LATENCY)
        began = time.monotonic()
        assert await said(line, b"hello") == b"hello"
        assert time.monotonic() - began >= 2 * LATENCY


async def test_reset_ends_new_and_open_connections_with_a_reset(proxy: FaultProxy) -> None:
    async with line_to(proxy.port) as line:
        assert await said(line, b"hello") == b"hello"
        await proxy.switch(Fault.RESET)
        async with asyncio.timeout(SOON):
            with pytest.raises(ConnectionResetError):
                await line[0].read(1000)
    with pytest.raises(ConnectionResetError):
        async with line_to(proxy.port) as line:
            await said(line, b"hello")
    await proxy.switch(Fault.NONE)
    async with line_to(proxy.port) as line:
        assert await said(line, b"hello") == b"hello"


async def test_hang_accepts_and_says_nothing_until_it_is_over(proxy: FaultProxy) -> None:
    async with line_to(proxy.port) as old:
        assert await said(old, b"hello") == b"hello"
        await proxy.switch(Fault.HANG)
        async with line_to(proxy.port) as new:
            for line in (old, new):
                line[1].write(b"anybody?")
                assert await hears_nothing(line)
            await proxy.switch(Fault.NONE)
            for line in (old, new):
                assert await said(line, b"") == b"anybody?"


async def test_a_hang_can_become_another_fault(proxy: FaultProxy) -> None:
    await proxy.switch(Fault.HANG)
    async with line_to(proxy.port) as line:
        assert await hears_nothing(line)
        await proxy.switch(Fault.RESET)
        with pytest.raises(ConnectionResetError):
            await said(line, b"")


async def test_a_server_that_is_away_is_a_reset() -> None:
    async with FaultProxy(free_port(), free_port()) as proxy:
        with pytest.raises(ConnectionResetError):
            async with line_to(proxy.port) as line:
                await said(line, b"hello")


async def test_a_proxy_of_its_own_process_is_switched_and_ends_with_us() -> None:
    port = free_port()
    async with echo() as target, proxied(port, target) as proxy:
        assert await _answers(proxy)
        await proxy.switch(Fault.DOWN)
        assert not await _answers(proxy)
        await proxy.switch(Fault.NONE)
        assert await _answers(proxy)
    assert is_port_free(port)


async def _answers(proxy: ProxyProcess) -> bool:
    try:
        async with line_to(proxy.port) as line:
            return await said(line, b"hello") == b"hello"
    except ConnectionRefusedError:
        return False


# ---- What is judged ----


def test_more_than_the_limit_in_less_than_a_period_is_noticed_whenever_they_were_decided() -> None:
    assert over_admitted([(0.0, 0.1), (0.2, 0.3), (1.1, 1.2)], 2, 1.0) == []
    assert over_admitted([(0.0, 0.1), (0.2, 0.3), (0.8, 0.9)], 2, 1.0) == [0.9]
    # The first may have been decided at 0.0 and the last at 1.1.
    assert over_admitted([(0.0, 0.5), (0.2, 0.3), (0.8, 1.1)], 2, 1.0) == []
    # What was one too many does not count against the next.
    assert over_admitted([(0.0, 0.1), (0.8, 0.9), (1.2, 1.3)], 1, 1.0) == [0.9]


def test_an_answer_is_stale_when_it_lacks_what_was_acknowledged_before_the_question() -> None:
    journal, register = Journal(), Register("tier", tried=3)
    register.acknowledged = {1: 10.0, 3: 20.0}
    for version in (1, 2, 3, 4):
        journal.see(register, version, register.known, asked=21.0)
    journal.see(register, 1, 1, asked=19.0)
    assert [(one.version, one.age) for one in journal.stale] == [(1, 1.0), (2, 1.0)]


def test_servers_say_when_they_were_without_valkey(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text(AWAY % 10 + "a traceback\n" + AWAY % 11 + THERE % 14 + THERE % 15 + AWAY % 20)
    (since, until), (last, ever) = outages(log)
    assert 4 < until - since < 5
    assert 5 < last - until < 7
    assert ever > time.monotonic()


def test_what_is_allowed_without_valkey_is_not_when_it_is_there() -> None:
    without = joined([(30.0, 35.0), (10.0, 12.0), (11.0, 13.0)])
    assert without == [(10.0, 13.0), (30.0, 35.0)]
    assert overlap(without, 12.0, 31.0) == pytest.approx(2.0)
    assert is_allowed(Stale("tier", 14.0, 0.5, 1, 2), without)
    assert not is_allowed(Stale("tier", 20.0, 0.5, 1, 2), without)
    assert not is_allowed(Stale("tier", 32.0, 9.0, 1, 2), without)
    admitted = [(one, one + 0.01) for one in (5.0, 11.0, 12.0, 20.0, 20.1, 20.2)]
    assert over_limit(Journal(admitted=admitted), without, 2, 3.0) == pytest.approx([20.21])


def test_an_order_belongs_to_the_fault_that_it_waited_through() -> None:
    before, waiting, within, lost = Order(1, 2, 1), Order(9, 30, 1), Order(12, 13, 1), Order(15, NEVER, 0)
    assert of_faults([before, waiting, within, lost], [0.0, 10.0, 20.0]) == [[before], [waiting, within], [lost]]


# ---- The report ----


def a_report(name: str = "valkey-down", **values: Any) -> FaultReport:
    report = FaultReport(name, "Valkey is away", 5.0, 100, {"503": 3, "502": 1, "timeout": 2}, 1.25, 0.5)
    return replace(report, **values)


def test_the_report_says_what_failed(tmp_path: Path) -> None:
    reports = [a_report(jobs=7), a_report("none")]
    titles, _, row, _ = (line.split("|")[1:-1] for line in table(reports).splitlines())
    cells = dict(zip(map(str.strip, titles), map(str.strip, row), strict=True))
    assert cells["failed"] == "6"
    assert (cells["503"], cells["502, 504"], cells["no answer"], cells["other"]) == ("3", "1", "2", "0")
    assert cells["jobs"] == "7"
    assert verdict(reports) == "Every promise held."
    write(reports, tmp_path / "results")
    assert table(reports) in (tmp_path / "results" / "latest.md").read_text()
    told = json.loads((tmp_path / "results" / "latest.json").read_text())
    assert [fault["name"] for fault in told["faults"]] == ["valkey-down", "none"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("jobs_lost", 1), ("jobs_twice", 1), ("writes_lost", 1), ("stale", 1), ("over_limit", 1), ("well_after", None)],
)
def test_a_broken_promise_is_named(field: str, value: int | None) -> None:
    report = a_report(**dict[str, Any]({field: value}))
    assert list(report.broken.values()) == [1]
    assert verdict([report]).startswith("BROKEN during valkey-down: ")


def test_each_fault_has_a_name_of_its_own() -> None:
    names = [injection.name for injection in INJECTIONS]
    assert len(set(names)) == len(names) == 16


@pytest.mark.skipif(not IN_FULL, reason="it takes half a minute, and CI does it")
def test_a_run_breaks_a_deployment_and_reports(tmp_path: Path) -> None:
    words = ["--only", "valkey-down", "--only", "worker-kill", "--seconds", "2", "--results", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-m", "chaos", *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("Every promise held.")
    told = json.loads((tmp_path / "latest.json").read_text())
    assert [fault["name"] for fault in told["faults"]] == ["valkey-down", "worker-kill"]
    assert all(fault["asked"] > 0 and fault["jobs"] > 0 for fault in told["faults"])
