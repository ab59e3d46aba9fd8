"""The functions that jobs can be enqueued for: what the workers of this application have, by queue."""

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from time import monotonic
from typing import Any, Final, Protocol

import structlog

from app.core.utils.queue.metrics import UNKNOWN
from app.core.utils.queue.table import DEFAULT_QUEUE
from app.core.utils.queue.workers import living_workers
from app.core.utils.redis_link import AnyLink, LinkError

CRON_PREFIX: Final = "cron:"  # ARQ's, of the name of a cron job
RECHECK_SECONDS: Final = 60.0  # between two looks at the workers for the same function

log = structlog.stdlib.get_logger("slipway.queue")

JobCoroutine = Callable[..., Coroutine[Any, Any, Any]]


class RegisteredFunction(Protocol):
    """What ARQ's `func` and `cron`, and our `job`, return."""

    name: str
    coroutine: JobCoroutine


JobFunctionLike = str | JobCoroutine | RegisteredFunction


class UnknownFunction(ValueError):  # noqa: N818 -- as the states of jobs are called
    """No worker of this application has the function that a job was enqueued for."""


class SameName(ValueError):  # noqa: N818 -- the same
    """Two functions of a worker have one name."""


class KnownFunctions:
    """The functions of some workers, by queue and name."""

    def __init__(self, workers: Iterable[object]) -> None:
        """
        Args:
            workers: classes such as `WorkerSettings`.

        Raises: SameName.
        """
        self.by_queue: dict[str, dict[str, JobCoroutine | None]] = {}
        for settings in workers:
            queue = getattr(settings, "queue_name", None) or DEFAULT_QUEUE
            named = self.by_queue.setdefault(queue, {})
            # Functions come first: a function that is also a cron job is enqueued by its own name.
            for attribute in ("functions", "cron_jobs"):
                for function in getattr(settings, attribute, None) or ():
                    name, coroutine = name_and_coroutine(function)
                    refuse_same_name(named, name, coroutine)
                    named[name] = coroutine

    def name_of(self, function: JobFunctionLike, queue: str) -> str | None:
        """The name by which workers of a queue have a function; None where nothing is known about the queue.

        Raises: UnknownFunction.
        """
        named = self.by_queue.get(queue)
        if named is None:
            return None
        name, coroutine = name_and_coroutine(function)
        if name in named and (coroutine is None or named[name] in (coroutine, None)):
            return name
        if coroutine is not None and not hasattr(function, "coroutine"):
            names = [known for known, its in named.items() if its == coroutine]
            if len(names) > 1 and not names[1].startswith(CRON_PREFIX):
                raise UnknownFunction(f"{name} has several names, {', '.join(names)}: enqueue it by one of them.")
            if names:
                return names[0]
        raise UnknownFunction(self._complaint(name, queue, is_taken=name in named))

    def _complaint(self, name: str, queue: str, *, is_taken: bool) -> str:
        if is_taken:
            return (
                f"In queue {queue!r}, {name!r} is another function: give this one a name of its own, by job(name=...)."
            )
        text = f"No worker of queue {queue!r} has a function {name!r}: add it to `functions` of its settings."
        if elsewhere := [other for other, named in self.by_queue.items() if name in named]:
            return f"{text} Queue {elsewhere[0]!r} has it: pass `_queue_name`."
        nearest = get_close_matches(name, self.by_queue[queue], n=3, cutoff=0.5)
        return f"{text} Similar names: {', '.join(nearest)}." if nearest else text


def name_and_coroutine(function: JobFunctionLike) -> tuple[str, JobCoroutine | None]:
    """The name that a worker gives a function by default, and what it runs. Raises: TypeError."""
    if isinstance(function, str):
        return function, None
    if hasattr(function, "coroutine") and hasattr(function, "name"):
        return function.name, function.coroutine
    if not (callable(function) and hasattr(function, "__qualname__")):
        raise TypeError(f"A job is enqueued for a function or its name, not for {type(function).__name__}.")
    return function.__qualname__, function


def refuse_same_name(named: Mapping[str, JobCoroutine | None], name: str, coroutine: JobCoroutine | None) -> None:
    """Raises: SameName when another function has this name."""
    if name in named and named[name] != coroutine:
        raise SameName(f"Two functions are called {name!r}: give one of them another name, by job(..., name=...).")


def check_arguments(function: JobFunctionLike, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """For a function that was passed as such. Raises: TypeError when it cannot be called with these after `ctx`."""
    name, coroutine = name_and_coroutine(function)
    if coroutine is None:
        return
    try:
        inspect.signature(coroutine).bind({}, *args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None


# ---- What is known in this process ----

_known: list[KnownFunctions] = []  # more than one where several apps run in a process, as in tests
_checked: dict[tuple[str, str], float] = {}  # when a function was last looked for, on the monotonic clock
_looking: set[asyncio.Task[None]] = set()


@contextmanager
def known_functions(workers: Iterable[object]) -> Iterator[None]:
    """Has jobs refused, meanwhile, whose function none of these workers has. Raises: SameName."""
    known = KnownFunctions(workers)
    if not known.by_queue:
        yield
        return
    _known.append(known)
    try:
        yield
    finally:
        _known.remove(known)


async def resolve(function: JobFunctionLike, queue: str, link: AnyLink | None) -> str:
    """The name to enqueue a function by.

    A name that the application's workers do not have is accepted if a living worker of the queue has it: one of a
    newer release, or one that is deployed apart. It is also accepted, with a warning, while Redis/Valkey cannot be
    asked. Of a queue about which the application has said nothing, the workers are asked later, for a warning.

    Args:
        function: its name, the function, or what `job` or ARQ's `func` return.
        queue: the name of the queue.
        link: to the queue's server; None without.

    Raises: UnknownFunction, TypeError.
    """
    name = name_and_coroutine(function)[0]
    try:
        known = _known[-1].name_of(function, queue) if _known else None
    except UnknownFunction:
        if link is None:
            raise
        has_it = await _is_known_to_a_worker(link, queue, name, without_workers=False)
        if has_it is False:
            raise
        if has_it is None:
            _warn(name, queue)
        return name
    if known is None and link is not None:
        _look_later(name, queue, link)
    return known or name


async def _is_known_to_a_worker(link: AnyLink, queue: str, name: str, *, without_workers: bool) -> bool | None:
    """Whether a living worker of the queue has the function; None when that cannot be told.

    `without_workers` is the answer where no worker of the queue lives.
    """
    try:
        workers = [worker for worker in await living_workers(link) if worker.queue == queue and not worker.late]
    except LinkError:
        return None
    if not workers:
        return without_workers
    if any(name in worker.functions for worker in workers):
        return True
    return None if any(worker.is_older for worker in workers) else False


def _look_later(name: str, queue: str, link: AnyLink) -> None:
    if monotonic() - _checked.get((queue, name), -RECHECK_SECONDS) < RECHECK_SECONDS:
        return
    _checked[queue, name] = monotonic()
    task = asyncio.create_task(_look(name, queue, link))
    _looking.add(task)
    task.add_done_callback(_looking.discard)


async def _look(name: str, queue: str, link: AnyLink) -> None:
    if await _is_known_to_a_worker(link, queue, name, without_workers=True) is False:
        _warn(name, queue)


async def stop_looking() -> None:
    """Ends what is under way, before the link is closed."""
    for task in list(_looking):
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _warn(name: str, queue: str) -> None:
    UNKNOWN.inc()  # Without the function's name: of a series that begins, an alert sees no increase.
    log.warning("no worker is known to have this function", function=name, queue=queue)
