"""What is asked, and the ratios to a bare FastAPI route that are wanted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bench.load import Asked
from bench.people import USERNAME, People
from bench.servers import Server

BARE: Final = "bare FastAPI route"


def bare(server: Server) -> Asked:
    """What everything is compared with."""
    return Asked(f"{server.address}/bare", pid=server.pid)


@dataclass(frozen=True, slots=True)
class Case:
    """A request.

    Attributes:
        path: below the prefix of the API.
        signed_in: whether it is a user's, with an access token.
        signs_in: whether it is the one that sends name and password.
        cached: False: asked of the app without a cache.
        first, aim: the ratios that are wanted at first, and in the end; None where nobody has said.
    """

    name: str
    path: str
    method: str = "GET"
    signed_in: bool = False
    signs_in: bool = False
    cached: bool = True
    first: float | None = None
    aim: float | None = None

    def asked(self, server: Server, people: People) -> Asked:
        """The request to a server of ours."""
        return Asked(
            f"{server.address}/api/v1/{self.path}",
            self.method,
            people.token if self.signed_in else {},
            people.form if self.signs_in else None,
            server.pid,
        )


# All but the first are counted by the rate limiter.
CASES: Final = (
    Case("ping", "health", first=0.85, aim=0.95),
    Case("cached GET, hit", "tier/free", first=0.50, aim=0.75),
    Case("public profile, not cached", f"user/{USERNAME}", cached=False, first=0.30, aim=0.45),
    Case("GET /user/me/", "user/me/", signed_in=True, first=0.30, aim=0.45),
    Case("page of 10 users of 1,000", "users?items_per_page=10", first=0.15, aim=0.25),
    Case("page of 100 users of 1,000", "users?items_per_page=100"),
    Case("enqueue a job", "tasks/task?message=hello", "POST", first=0.10, aim=0.15),
    Case("login", "login", "POST", signs_in=True),
)


def requests(cases: tuple[Case, ...], app: Server, uncached: Server, people: People) -> Mapping[str, Asked]:
    """Each case's request, by its name.

    Args:
        app, uncached: the app, and the one without a cache.
    """
    return {case.name: case.asked(app if case.cached else uncached, people) for case in cases}
