"""What a function's options say."""

from datetime import timedelta
from typing import Any

import pytest
from arq import cron
from arq.worker import Function, func

from app.core.worker.options import FIRST_RETRY, LONGEST_RETRY, JobFunction, job, pause_before_retry


async def work(ctx: dict[Any, Any]) -> None:
    """Does nothing."""


def test_without_options_a_function_goes_by_its_workers() -> None:
    plain = job(work)
    assert isinstance(plain, Function)
    assert (plain.name, plain.coroutine) == ("work", work)
    assert (plain.max_tries, plain.timeout_s, plain.keep_result_s, plain.keep_result_forever) == (None,) * 4
    assert (plain.first_retry, plain.longest_retry) == (FIRST_RETRY, LONGEST_RETRY)


def test_a_function_can_have_options_of_its_own() -> None:
    own = job(
        work,
        name="other",
        max_tries=3,
        timeout=timedelta(minutes=1),
        keep_result=0,
        keep_result_forever=True,
        first_retry=1,
        longest_retry=9,
    )
    assert own == JobFunction("other", work, 60, 0, True, 3, 1, 9)
    assert func(own) is own


@pytest.mark.parametrize("attempt", [1, 2, 3, 7, 8, 9, 50, 100_000])
def test_pauses_double_up_to_the_longest_and_are_shortened_by_up_to_half(attempt: int) -> None:
    whole = min(600, 5 * 2 ** min(attempt - 1, 20))
    pauses = [pause_before_retry(job(work, first_retry=5, longest_retry=600), attempt) for _ in range(300)]
    assert whole / 2 <= min(pauses) < whole * 0.6
    assert whole * 0.9 < max(pauses) <= whole


@pytest.mark.parametrize("function", [None, func(work), cron(work)])
def test_what_says_nothing_has_the_usual_pauses(function: Any) -> None:
    assert FIRST_RETRY / 2 <= pause_before_retry(function, 1) <= FIRST_RETRY
    assert LONGEST_RETRY / 2 <= pause_before_retry(function, 99) <= LONGEST_RETRY


def test_there_can_be_no_pause_at_all() -> None:
    assert pause_before_retry(job(work, first_retry=0), 5) == 0
