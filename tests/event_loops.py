"""The event loops that what talks to servers is tested on: they differ in how they connect, close and tell the time."""

import sys
import warnings
from types import SimpleNamespace

import pytest
import uvloop


class Uvloop(uvloop.Loop):
    """uvloop's, of which a connection that is still open at its end is told: the test at whose end that is fails.

    Its own `close` would wait for ever instead. It warns of what is open before it closes that, and waits for all to be
    closed; here warnings are errors, and one that is raised there leaves what it is about open.
    """

    def close(self) -> None:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            super().close()
        for warning in found:  # Raised, it would keep anyio from making a new loop for the next test.
            told = SimpleNamespace(
                exc_type=warning.category,
                exc_value=warning.message,
                exc_traceback=None,
                err_msg="At the end of an event loop",
                object=self,
            )
            sys.unraisablehook(told)


@pytest.fixture(
    scope="module",
    params=[pytest.param({}, id="asyncio"), pytest.param({"loop_factory": Uvloop}, id="uvloop")],
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    """Both loops: has each test of a module that imports this run on either."""
    return "asyncio", request.param
