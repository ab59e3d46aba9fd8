"""What a check finds."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """The line of one check. Neither text nor remedy ever holds a secret.

    Attributes:
        check: what was looked at, such as `database: encoding`.
        text: what was found, a sentence without a full stop.
        remedy: what to set or to run.
        is_certain: whether it is no outage but a mistake, which waiting does not mend: production refuses to start.
    """

    check: str
    outcome: Outcome
    text: str
    remedy: str = ""
    is_certain: bool = False

    def __str__(self) -> str:
        remedy = f". Remedy: {self.remedy}" if self.remedy else ""
        return f"{self.outcome:<7}  {self.check}: {self.text}{remedy}"

    def as_dict(self) -> dict[str, Any]:
        """The same for machines."""
        return asdict(self)


def ok(check: str, text: str) -> Finding:
    """All is well."""
    return Finding(check, Outcome.OK, text)


def warning(check: str, text: str, remedy: str) -> Finding:
    """It works, but not as well, or not as safely, as it should."""
    return Finding(check, Outcome.WARNING, text, remedy)


def failed(check: str, text: str, remedy: str, *, is_certain: bool = False) -> Finding:
    """It does not work, or will not."""
    return Finding(check, Outcome.FAILED, text, remedy, is_certain)
