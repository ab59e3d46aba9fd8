"""What can be said about a function that is run as a job."""

import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from arq.cron import CronJob
from arq.worker import Function, func

FIRST_RETRY: Final = 2.0  # seconds
LONGEST_RETRY: Final = 600.0  # seconds

Seconds = int | float | timedelta


@dataclass
class JobFunction(Function):
    """ARQ's, and how long to wait before another attempt."""

    first_retry: float = FIRST_RETRY
    longest_retry: float = LONGEST_RETRY


class GiveUp(Exception):  # noqa: N818 -- what to do, as ARQ's Retry is
    """Raised by a job that no further attempt can help: it is a dead letter at once."""


def job(
    function: Callable[..., Coroutine[Any, Any, Any]],
    *,
    name: str | None = None,
    max_tries: int | None = None,
    timeout: Seconds | None = None,
    keep_result: Seconds | None = None,
    keep_result_forever: bool | None = None,
    first_retry: float = FIRST_RETRY,
    longest_retry: float = LONGEST_RETRY,
) -> JobFunction:
    """A function for `WorkerSettings.functions`, with options of its own; ARQ's `func` knows most of them.

    Args:
        name: what it is enqueued by; its own name by default.
        max_tries: how many attempts there are before it is a dead letter; the worker's `max_tries` by default.
        timeout: seconds an attempt may take; the worker's `job_timeout` by default.
        keep_result: seconds the job is kept after it has succeeded; 0 removes it at once, with its arguments.
        keep_result_forever: True: housekeeping never removes it.
        first_retry, longest_retry: seconds until the second attempt, which double with each further one up to the
            longest. Each pause is shortened at random by up to half, so that what failed together comes back apart.
    """
    arqs = func(
        function,
        name=name,
        max_tries=max_tries,
        timeout=timeout,
        keep_result=keep_result,
        keep_result_forever=keep_result_forever,
    )
    return JobFunction(**vars(arqs), first_retry=first_retry, longest_retry=longest_retry)


def pause_before_retry(function: Function | CronJob | None, attempt: int) -> float:
    """Seconds until the next attempt, after this one has failed: exponential backoff with jitter.

    Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 ("equal jitter").
    """
    first = getattr(function, "first_retry", FIRST_RETRY)
    longest = getattr(function, "longest_retry", LONGEST_RETRY)
    whole: float = min(longest, first * 2 ** min(attempt - 1, 40))
    return whole * random.uniform(0.5, 1)  # noqa: S311 -- no secret
