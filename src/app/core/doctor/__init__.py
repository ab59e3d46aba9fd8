"""Looks at the settings and at every server they name: `python -m src.scripts.doctor`, and a start in production."""

from app.core.doctor.connections import Fleet, connections_of_web, connections_of_worker
from app.core.doctor.examination import examine
from app.core.doctor.finding import Finding, Outcome, failed
from app.core.doctor.start import refuse_certain_faults, say_in_short_why_it_does_not_start

__all__ = [
    "Finding",
    "Fleet",
    "Outcome",
    "connections_of_web",
    "connections_of_worker",
    "examine",
    "failed",
    "refuse_certain_faults",
    "say_in_short_why_it_does_not_start",
]
