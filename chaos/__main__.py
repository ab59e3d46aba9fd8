"""Everything that can break breaks, one after the other, under load: `make chaos`, or `python -m chaos`.

A real deployment (nginx, two servers, two workers, PostgreSQL, Valkey), and a report of what failed and what was lost.
Ends with 1 when something was that must not be.
"""

import argparse
import asyncio
import signal
from collections.abc import Coroutine
from pathlib import Path

from tests.nginx import NGINX

from chaos.faults import INJECTIONS
from chaos.report import RESULTS, FaultReport, table, verdict, write
from chaos.run import run

SECONDS = 5.0


def main() -> None:
    """Prints the table."""
    names = [injection.name for injection in INJECTIONS]
    arguments = argparse.ArgumentParser(
        prog="python -m chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--only", metavar="NAME", action="append", choices=names, help=f"one of {', '.join(names)}")
    arguments.add_argument("--seconds", type=float, default=SECONDS, help="that each fault lasts (%(default)s)")
    arguments.add_argument(
        "--results", type=Path, metavar="FOLDER", help="for latest.md and latest.json; chaos/results without --only"
    )
    arguments.add_argument("--logs", type=Path, metavar="FOLDER", help="where to keep the logs of all processes")
    given = arguments.parse_args()
    if NGINX is None:
        raise SystemExit("nginx is not installed: `apt-get install nginx-light`.")
    chosen = [injection for injection in INJECTIONS if not given.only or injection.name in given.only]
    try:
        reports = asyncio.run(until_told_to_stop(run(chosen, given.seconds, given.logs)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise SystemExit("Stopped, and everything with it.") from None
    if results := given.results or (None if given.only else RESULTS):
        write(reports, results)
    print(table(reports))
    print(verdict(reports))
    raise SystemExit(1 if any(report.broken for report in reports) else 0)


async def until_told_to_stop(running: Coroutine[None, None, list[FaultReport]]) -> list[FaultReport]:
    """SIGTERM does what Ctrl-C does: all that was started is stopped. Raises: asyncio.CancelledError then."""
    task = asyncio.create_task(running)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


if __name__ == "__main__":
    main()
