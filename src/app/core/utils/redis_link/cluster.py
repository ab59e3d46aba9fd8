"""A Redis/Valkey cluster: each command goes to the primary that holds its key.

Follows the cluster specification's rules for clients (https://redis.io/docs/latest/operate/oss_and_stack/reference/
cluster-spec/): CRC16 of the hash tag, MOVED and ASK.
"""

import asyncio
import random
from typing import Any, Final

from redis.crc import key_slot

from app.core.utils.redis_link.command import Command, Keys, LinkDown, Refused, Script, Word, first_error, words_of
from app.core.utils.redis_link.link import Link, Listener
from app.core.utils.redis_link.nodes import Nodes

MOST_REDIRECTIONS: Final = 2  # of one command; a third would be of no help to anybody


class ClusterLink:
    """What `Link` is to one server, for a cluster: a link to each of its primaries."""

    def __init__(self, url: str, name: str) -> None:
        """
        Args:
            url: `redis+cluster://` and some of the nodes.
            name: what the log calls this link.
        """
        self.name = name
        self._nodes = Nodes(url, name)

    @property
    def up(self) -> bool:
        """Whether any of it can be asked."""
        return bool(self._nodes.up())

    async def open(self) -> None:
        """Begins to connect. Returns when the first try is over, whatever came of it, or has taken too long."""
        await self._nodes.open()

    async def close(self) -> None:
        """Closes every connection. What is asked later fails."""
        await self._nodes.close()

    def on_change(self, listener: Listener, key: Word | None = None) -> None:
        """Has this called with True whenever one of the primaries is there, and with False whenever one is lost.

        One that has become a primary is both, at once: it may not have all that its predecessor has said to be done.
        That is before anything is asked of it.

        Args:
            listener: what to call.
            key: one that this is about: it is called with True as well whenever that moves to another primary.
        """
        self._nodes.on_change(listener, None if key is None else _slot(key))

    async def parts(self, *, anew: bool = False) -> list[Link]:
        """The primaries that hold keys; `anew`: after a look at who that is now.

        Raises: LinkDown when there are keys that nobody holds, or nobody can say.
        """
        if anew and not await self._nodes.look():
            raise LinkDown(self.name)
        return self._nodes.holders()

    # ---- Commands ----

    async def send(self, *words: Word) -> Any:
        """Asks any of the nodes, for what is not about keys. Raises: LinkDown, Refused."""
        up = self._nodes.up()
        if not up:
            raise LinkDown(self.name)
        return await random.choice(up).send(*words)  # noqa: S311 -- no secret

    async def ask(self, *words: Word) -> Any:
        """Sends a command whose second word is a key; returns its reply. Raises: LinkDown, Refused."""
        return await self._do(words)

    async def call(self, script: Script, keys: Keys, *arguments: Word) -> Any:
        """Runs a script on keys of one slot. Raises: LinkDown, Refused."""
        return await self._do((script, keys, *arguments))

    async def run(self, first: Command, *others: Command) -> list[Any]:
        """Does the first of these and, once that is done, the others, in any order; returns their replies.

        Each has a key as its second word. What is sent elsewhere is done there, and when that is the first, the others
        are done once more after it.

        Raises: LinkDown, Refused, whatever the first that failed has failed with; what could be done is done.
        """
        commands = (first, *others)
        links = {self._nodes.holder_of(_slot(command[1])) for command in commands}
        if len(links) == 1:
            outcomes = await links.pop().outcomes(*commands)
            left = [number for number, outcome in enumerate(outcomes) if _is_elsewhere(outcome)]
        else:
            outcomes = [None] * len(commands)
            left = list(range(len(commands)))
        if left and left[0] == 0:
            outcomes[0] = await self._do(first)
            left = list(range(1, len(commands)))
        done = await asyncio.gather(*(self._do(commands[number]) for number in left), return_exceptions=True)
        for number, outcome in zip(left, done, strict=True):
            outcomes[number] = outcome
        if (error := first_error(outcomes)) is not None:
            raise error
        return outcomes

    async def _do(self, command: Command) -> Any:
        slot = _slot(command[1])
        link = self._nodes.holder_of(slot)
        for _ in range(MOST_REDIRECTIONS):
            try:
                return await _ask(link, command)
            except Refused as refusal:
                kind, *where = str(refusal).split()
                if kind == "CLUSTERDOWN":
                    self._nodes.look_soon()
                if kind not in _ELSEWHERE:
                    raise
            link = await self._nodes.follow(slot, where[1], link, for_good=kind == "MOVED")
            if kind == "ASK":  # It is on its way there, and only this once to be asked for there.
                return (await link.run(("ASKING",), words_of(command, whole=True)))[1]
        return await _ask(link, command)


_ELSEWHERE: Final = ("MOVED", "ASK")


def _is_elsewhere(outcome: object) -> bool:
    return isinstance(outcome, Refused) and str(outcome).startswith(tuple(f"{kind} " for kind in _ELSEWHERE))


async def _ask(link: Link, command: Command) -> Any:
    what, *rest = command
    return await (link.call(what, *rest) if isinstance(what, Script) else link.send(*command))


def _slot(keys: Keys) -> int:
    key = keys[0] if isinstance(keys, tuple) else keys
    return key_slot(key if isinstance(key, bytes) else str(key).encode())
