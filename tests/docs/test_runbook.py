"""The runbook knows every alert, and the alerts know the runbook's."""

import re

import yaml

from tests.docs.blocks import FOLDER
from tests.processes import ROOT


def test_every_alert_has_a_section() -> None:
    """In the alerts' own order; those that somebody gets up for say so first."""
    groups = yaml.safe_load((ROOT / "deploy" / "monitoring" / "alerts.yml").read_text())["groups"]
    alerts = {rule["alert"]: rule["labels"]["severity"] for group in groups for rule in group["rules"]}
    runbook = (FOLDER / "docs" / "operate.md").read_text()
    sections = dict(re.findall(r"^### (Slipway\w+)\n\n(\S+)", runbook, re.MULTILINE))
    assert list(sections) == list(alerts)
    paged = {name for name, first in sections.items() if first == "**Page.**"}
    assert paged == {name for name, severity in alerts.items() if severity == "critical"}
