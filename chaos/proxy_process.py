"""A proxy in a process of its own, so that it is not held up by whoever asks: `python -m chaos.proxy_process`.

It takes the name of a fault on a line of its standard input, says when it behaves so, and ends when that is closed.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from chaos.proxy import Fault, FaultProxy

READY: Final = b"ready\n"


class ProxyProcess:
    """The other end of it. Attributes: port: where it listens."""

    def __init__(self, port: int, process: asyncio.subprocess.Process) -> None:
        self.port = port
        self._process = process

    async def switch(self, fault: Fault) -> None:
        """Returns when it behaves so. Raises: EOFError when it has ended."""
        assert self._process.stdin is not None  # noqa: S101 -- for mypy: it was asked for
        self._process.stdin.write(f"{fault}\n".encode())
        await self._heard()

    async def _heard(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 -- the same
        if await self._process.stdout.readline() != READY:
            raise EOFError("The proxy has ended.")


@asynccontextmanager
async def proxied(port: int, target: int) -> AsyncIterator[ProxyProcess]:
    """A proxy, once it listens."""
    words = (sys.executable, "-m", "chaos.proxy_process", str(port), str(target))
    # In a session of its own: Ctrl-C in the terminal is not for it.
    process = await asyncio.create_subprocess_exec(
        *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        proxy = ProxyProcess(port, process)
        await proxy.switch(Fault.NONE)
        yield proxy
    finally:
        if process.stdin is not None:
            process.stdin.close()
        await process.wait()


async def serve(port: int, target: int) -> None:
    """Does as it is told, line by line, until there are no more."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with FaultProxy(port, target) as proxy:
        while line := (await lines.readline()).decode().strip():
            await proxy.switch(Fault(line))
            sys.stdout.buffer.write(READY)
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve(*map(int, sys.argv[1:])))
