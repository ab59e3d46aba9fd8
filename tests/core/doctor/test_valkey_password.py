"""Who is let in by a Redis/Valkey server: without a password, with one, with a certificate."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from ssl import CERT_OPTIONAL, CERT_REQUIRED, PROTOCOL_TLS_SERVER, SSLContext, VerifyMode

import pytest

from tests.doctor_kit import BEYOND, FAILED, OK, SECRET, STRONG, WARNING, Settle, lines
from tests.redis_topologies import Node
from tests.smtp_server import self_signed_certificate

pytestmark = pytest.mark.anyio


async def test_a_server_without_password(settle: Settle, server: Node) -> None:
    check = "valkey (cache): password"
    found = (await lines(settle(REDIS_CACHE_HOST=BEYOND, REDIS_CACHE_PORT=server.port)))[check]
    assert found.outcome is WARNING
    assert "set requirepass" in found.remedy
    assert "REDIS_CACHE_URL" in found.remedy
    assert (await lines(settle(ENVIRONMENT="production", SECRET_KEY=STRONG)))[check].outcome is FAILED

    # Whoever says a password may be let in for it, and everybody else as well.
    server.client.execute_command("ACL", "SETUSER", "app", "on", f">{SECRET}", "allkeys", "+@all")
    url = f"redis://app:{SECRET}@{BEYOND}:{server.port}/0"
    assert (await lines(settle(REDIS_CACHE_URL=url)))[check].outcome is FAILED


async def test_a_server_with_a_password(settle: Settle, server: Node) -> None:
    server.client.config_set("requirepass", SECRET)
    found = await lines(settle(REDIS_CACHE_URL=f"redis://:{SECRET}@{BEYOND}:{server.port}/0"))
    server.client.execute_command("AUTH", SECRET)
    assert found["valkey (cache): password"].outcome is OK
    assert found["valkey (cache): TLS"].outcome is WARNING
    assert "begin with rediss" in found["valkey (cache): TLS"].remedy

    for login in ("", f":not-{SECRET}@"):
        found = await lines(settle(REDIS_CACHE_URL=f"redis://{login}127.0.0.1:{server.port}/0"))
        assert found["valkey (cache)"].outcome is FAILED
        assert "password" in found["valkey (cache)"].remedy
        assert SECRET not in repr(found)


async def test_a_server_that_asks_for_a_certificate(settle: Settle, server: Node, tmp_path: Path) -> None:
    certificate = self_signed_certificate(tmp_path)
    query = f"ssl_cert_reqs=none&ssl_certfile={certificate}&ssl_keyfile={certificate}"
    for asks, outcome, words in ((CERT_REQUIRED, OK, "it asks for a certificate"), (CERT_OPTIONAL, FAILED, "lets in")):
        async with _behind_tls(server.port, certificate, asks) as port:
            url = f"rediss://{BEYOND}:{port}/0?{query}"
            found = await lines(settle(ENVIRONMENT="production", SECRET_KEY=STRONG, REDIS_CACHE_URL=url))
        assert found["valkey (cache)"].outcome is OK
        assert found["valkey (cache): password"].outcome is outcome
        assert words in found["valkey (cache): password"].text


@asynccontextmanager
async def _behind_tls(behind: int, certificate: Path, asks: VerifyMode) -> AsyncIterator[int]:
    """TLS before a server, for whoever has the certificate. Yields the port. The wheel's Valkey speaks none itself."""
    context = SSLContext(PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.load_verify_locations(certificate)
    context.verify_mode = asks

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", behind)
        with suppress(OSError):
            await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))

    listening = await asyncio.start_server(pass_on, "127.0.0.1", 0, ssl=context)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
