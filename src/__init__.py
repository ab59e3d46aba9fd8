"""Makes `app` importable from the project root, where it is also `src.app` (see `app/__init__.py`)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import app  # noqa: F401  (its import is what unites the two names)
