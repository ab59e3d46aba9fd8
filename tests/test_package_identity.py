"""`app` and `src.app` are one package, from the project root and from `src/`, whichever is imported first."""

import subprocess
import sys

import pytest

from tests.processes import ROOT

FROM_BOTH_SIDES = """
import sys
{first}
{second}
import app.models.user, src.app.models.user
import app.core.db.database as one
from src.app.core.db import database as other
import src.app, app
assert one is other and src.app is app
assert app.models.user.User is src.app.models.user.User
assert one.__name__ == one.__spec__.name == "app.core.db.database"
assert not [name for name, module in sys.modules.items() if name.startswith("src.app") and module.__name__ == name]
"""


@pytest.mark.parametrize("folder", ["", "src"])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("import src.app.core.setup", "import app.core.setup"),
        ("import src", "import app.models"),
    ],
)
def test_importing_by_both_names_gives_the_same_objects(folder: str, first: str, second: str) -> None:
    if folder:  # There, `app` is the name that is found first.
        first, second = second, first
    code = FROM_BOTH_SIDES.format(first=first, second=second)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
