"""What is reported of each fault: as a table, as a page, and for machines."""

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from chaos.journal import SAID

RESULTS: Final = Path(__file__).parent / "results"
TITLES: Final = (
    *(
        "fault",
        "for s",
        "asked",
        "failed",
        "503",
        "502, 504",
        "other",
        "no answer",
        "longest s",
        "no Valkey s",
        "well after s",
    ),
    *("jobs", "slowest s", "lost", "twice", "writes lost", "stale", "over limit"),
)
FROM_NGINX: Final = ("502", "504")
NO_ANSWER: Final = ("no answer", "timeout")


@dataclass
class FaultReport:
    """One fault.

    Attributes:
        name, what: of the fault.
        seconds: how long it lasted.
        asked: requests that ended from its beginning to that of the next; failures: what came instead of answers.
        longest: seconds that the slowest answer took, or that was waited for none.
        well_after: seconds from its end until all was well and no request failed any more; None if that did not come.
        jobs: that were acknowledged meanwhile, or were not done yet when it began.
        slowest_job: seconds from an acknowledgement until the job was done; of its own it takes two at most.
        jobs_lost, jobs_twice, writes_lost, stale, over_limit: broken promises.
        lagging: stale reads within what docs/cache.md allows.
        without_valkey: seconds in which at least one server said that it was without Valkey.
        examples: the failures in words, and how often each; and answers that were too old.
    """

    name: str
    what: str
    seconds: float
    asked: int
    failures: dict[str, int]
    longest: float
    well_after: float | None
    jobs: int = 0
    slowest_job: float = 0.0
    jobs_lost: int = 0
    jobs_twice: int = 0
    writes_lost: int = 0
    stale: int = 0
    lagging: int = 0
    over_limit: int = 0
    without_valkey: float = 0.0
    examples: dict[str, int] = field(default_factory=dict)

    @property
    def broken(self) -> dict[str, int]:
        """The promises that did not hold, and how often."""
        promises = {
            "acknowledged jobs lost": self.jobs_lost,
            "jobs done twice": self.jobs_twice,
            "acknowledged writes lost": self.writes_lost,
            "answers older than an acknowledged write": self.stale,
            "requests over the limit": self.over_limit,
            "not well again": int(self.well_after is None),
        }
        return {promise: times for promise, times in promises.items() if times}

    def cells(self) -> list[str]:
        """Its row of the table."""
        failed = dict(self.failures)
        said = failed.pop(SAID, 0)
        nginx = sum(failed.pop(status, 0) for status in FROM_NGINX)
        silent = sum(failed.pop(kind, 0) for kind in NO_ANSWER)
        well = "never" if self.well_after is None else f"{self.well_after:.1f}"
        return [
            *(self.name, f"{self.seconds:.1f}", str(self.asked), str(sum(self.failures.values()))),
            *map(str, (said, nginx, sum(failed.values()), silent)),
            *(f"{self.longest:.1f}", f"{self.without_valkey:.1f}", well, str(self.jobs), f"{self.slowest_job:.1f}"),
            *map(str, (self.jobs_lost, self.jobs_twice, self.writes_lost, self.stale, self.over_limit)),
        ]


def table(reports: list[FaultReport]) -> str:
    """For people: a Markdown table whose columns stand below each other."""
    rows = [list(TITLES), *(report.cells() for report in reports)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(_aligned(row, widths)) + " |" for row in rows]
    lines.insert(
        1, "|" + "|".join("-" * (width + 1) + (":" if number else "-") for number, width in enumerate(widths)) + "|"
    )
    return "\n".join(lines)


def _aligned(row: list[str], widths: list[int]) -> Iterator[str]:
    for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
        yield cell.rjust(width) if number else cell.ljust(width)


def machine() -> str:
    """What it ran on, without its name."""
    model = platform.machine()
    if (cpus := Path("/proc/cpuinfo")).exists():
        models = [line.partition(": ")[2] for line in cpus.read_text().splitlines() if line.startswith("model name")]
        model = next(iter(models), model)
    return f"{os.cpu_count()} cores ({model}), {platform.system()}, Python {platform.python_version()}"


def verdict(reports: list[FaultReport]) -> str:
    """What was broken, a line per promise and fault; or that nothing was."""
    lines = [
        f"BROKEN during {report.name}: {promise}: {times}"
        for report in reports
        for promise, times in report.broken.items()
    ]
    return "\n".join(lines) or "Every promise held."


def write(reports: list[FaultReport], folder: Path) -> None:
    """Writes `latest.md` and `latest.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    what = "\n".join(f"- `{report.name}`: {report.what}" for report in reports)
    page = f"# Faults\n\n{when}, {machine()}.\n\n{table(reports)}\n\n{verdict(reports)}\n\n{what}\n"
    (folder / "latest.md").write_text(page)
    faults: list[dict[str, Any]] = [asdict(report) | {"broken": report.broken} for report in reports]
    told = {"when": when, "machine": machine(), "faults": faults}
    (folder / "latest.json").write_text(json.dumps(told, indent=2) + "\n")
