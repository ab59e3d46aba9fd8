"""`python -m src.scripts.dev run` and `... services`: what `make run` and `make services` do."""

import argparse
import signal
import sys
from typing import NoReturn

from .api_port import read_port
from .unprivileged import ServiceError


class Stopped(KeyboardInterrupt):
    """Somebody asked this process to stop."""


def main() -> int:
    """Run the command on the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m src.scripts.dev", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run_parser = commands.add_parser("run", help="start the services, the API and the worker")
    run_parser.add_argument("--port", default="", help="where the API listens")
    commands.add_parser("services", help="start only PostgreSQL and Valkey")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        from . import launch  # Takes half a second, in which Ctrl-C is already ours.

        if arguments.command == "run":
            launch.run(read_port(arguments.port))
        launch.services()
    except Stopped:
        return 0
    except ServiceError as error:
        print(error, file=sys.stderr)
        return 1


def _stop(number: int, frame: object) -> NoReturn:
    raise Stopped


if __name__ == "__main__":
    sys.exit(main())
