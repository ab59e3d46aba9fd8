"""HTTP on open connections, with next to nothing around it: hundreds of a client's requests begin over a second."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Self

from tests.canaries import refuse_secrets

Host = tuple[str, int]


@dataclass(frozen=True)
class Answer:
    """What came, and between which two moments it was decided, in seconds on this process's clock."""

    status: int
    headers: dict[str, str]
    sent: float
    came: float
    body: bytes = field(default=b"", repr=False)


@dataclass
class Line:
    """An open connection to a server, for one request after the other."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def to(cls, host: Host) -> Self:
        """A new one."""
        return cls(*await asyncio.open_connection(*host))

    async def ask(self, path: str, headers: Mapping[str, str], method: str = "GET") -> Answer:
        """The answer. Raises: OSError, EOFError when there is none, or not all of it."""
        fields = [f"{name}: {value}" for name, value in {"Host": "test", **headers}.items()]
        if method != "GET":
            fields.append("Content-Length: 0")
        request = "\r\n".join([f"{method} {path} HTTP/1.1", *fields, "", ""]).encode()
        sent = time.monotonic()
        self.writer.write(request)
        first, *rest = (await self.reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        told = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
        body = await self.reader.readexactly(int(told["content-length"]))
        status = int(first.split()[1])
        if status >= 400:
            refuse_secrets(body.decode(errors="replace"), f"the answer {status} of {path}")
        return Answer(status, told, sent, time.monotonic(), body)

    def close(self) -> None:
        """Hangs up."""
        self.writer.close()


@asynccontextmanager
async def lines_to(hosts: Iterable[Host]) -> AsyncIterator[list[Line]]:
    """One connection to each of these."""
    lines = await asyncio.gather(*map(Line.to, hosts))
    try:
        yield lines
    finally:
        for line in lines:
            line.close()


class LinePool:
    """As many connections to a host as are needed at once."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._free: list[Line] = []

    async def ask(self, path: str, headers: Mapping[str, str], method: str = "GET") -> Answer:
        """The answer. Raises: OSError, EOFError when there is none, or not all of it."""
        line = self._free.pop() if self._free else await Line.to(self._host)
        try:
            answer = await line.ask(path, headers, method)
        except BaseException:
            line.close()
            raise
        if answer.headers.get("connection") == "close":
            line.close()
        else:
            self._free.append(line)
        return answer

    def close(self) -> None:
        """Hangs up all of them."""
        for line in self._free:
            line.close()
