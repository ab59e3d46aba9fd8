"""The application. `app` and `src.app` are two names of one package.

The commands of one half of the documentation run in the project root and say `src.app.main:app`, those of the
other half run in `src/` and say `app.main:app`; code may import either. Python would load each module once per
name, with every table defined twice. The finder below answers for the second name with the module of the first.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

_SRC = Path(__file__).parents[1]
_ALIAS = "src.app"


class _AliasLoader:
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(spec.name.removeprefix("src."))
        self._own_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own_spec  # The import system has just put the alias's there.


class _AliasFinder:
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == _ALIAS or name.startswith(f"{_ALIAS}."):
            return ModuleSpec(name, _AliasLoader())  # type: ignore[arg-type]  # A loader needs only these methods.
        if name == "src":
            return spec_from_file_location(name, _SRC / "__init__.py", submodule_search_locations=[str(_SRC)])
        return None


sys.meta_path.insert(0, _AliasFinder())
