"""Faults on a real deployment under load: `python -m chaos`."""

import src  # noqa: F401 -- makes `app` and `scripts` importable
