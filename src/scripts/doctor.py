"""Checks the settings and every server they name: `python -m src.scripts.doctor`.

A line per check, with a remedy where there is something to mend. The exit code is 1 when a check failed, and else 0.
"""

import argparse
import asyncio
import json
import os
from collections.abc import Sequence

from app.core.config import RedisQueueSettings, Settings, SettingsError, get_settings
from app.core.doctor import Finding, Fleet, Outcome, examine, failed


def main() -> None:
    """Reads the command line, looks, prints, and exits."""
    arguments = _parser().parse_args()
    findings = _findings(arguments)
    print(_as_json(findings) if arguments.json else "\n".join(map(str, findings)))
    raise SystemExit(_fails(findings))


def _findings(arguments: argparse.Namespace) -> list[Finding]:
    try:
        settings = get_settings()
    except SettingsError as error:
        remedy = "set it in src/.env, or in the environment, which wins over that file"
        return [failed("settings", line.removesuffix("."), remedy) for line in str(error).splitlines()]
    return asyncio.run(examine(settings, _fleet(settings, arguments)))


def _fleet(settings: Settings, arguments: argparse.Namespace) -> Fleet:
    if not settings.inherits(RedisQueueSettings):
        return Fleet(arguments.web, workers=0, long_workers=0)
    from app.core.worker.settings import LongWorkerSettings, WorkerSettings  # Its import reads the settings.

    return Fleet(
        arguments.web,
        arguments.workers,
        arguments.long_workers,
        WorkerSettings.max_jobs,
        LongWorkerSettings.max_jobs,
        WorkerSettings.health_check_interval,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m src.scripts.doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="the same for machines")
    parser.add_argument("--web", type=_number, default=_usual_web(), help="web processes, on all machines together")
    parser.add_argument("--workers", type=_number, default=1, help="workers of the usual queue")
    parser.add_argument("--long-workers", type=_number, default=1, help="workers of long jobs")
    return parser


def _usual_web() -> int:
    text = os.environ.get("WEB_CONCURRENCY", "")
    return int(text) if text.isdecimal() else 1


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes")
    return int(text)


def _fails(findings: Sequence[Finding]) -> bool:
    return any(finding.outcome is Outcome.FAILED for finding in findings)


def _as_json(findings: Sequence[Finding]) -> str:
    found = [finding.as_dict() for finding in findings]
    return json.dumps({"ok": not _fails(findings), "findings": found}, indent=2)


if __name__ == "__main__":
    main()
