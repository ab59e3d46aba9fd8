"""Builds the documents' site: `python -m src.scripts.docs`, which is what `make docs` does.

Zensical builds the pages and refuses broken links between them. Pages also link files of the repository, which are no
pages: those are copied into the site, and the links led there, so that it is whole wherever it is put.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
COPIES = "repository"  # the folder of the site that the copies are in
SHOWN = {".html", ".svg", ".png", ".json"}  # a browser shows these as they are; others it shows as text
_FENCED = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s#:]+)((?:#[^)]*)?\))")


class BrokenLink(SystemExit):
    """A page links what is no file of the project. Uncaught, it ends the process with its one line, exit code 1."""


def main(words: Sequence[str] | None = None) -> None:
    """Builds the site of a project's folder. Raises: BrokenLink, and SystemExit when Zensical refuses."""
    parser = argparse.ArgumentParser(prog="python -m src.scripts.docs", description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help="the project's folder")
    root = parser.parse_args(words).root.resolve()
    with TemporaryDirectory() as folder:
        stage = Path(folder)
        shutil.copyfile(root / "mkdocs.yml", stage / "mkdocs.yml")
        shutil.copytree(root / "docs", stage / "docs")
        for page in sorted((root / "docs").rglob("*.md")):
            _lead_to_copies(page, root, stage / "docs")
        command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
        if subprocess.run(command, cwd=stage, check=False).returncode:
            raise SystemExit("The site was not built: see above.")
        (stage / "site" / "404.html").unlink()  # A server's matter: its links are good in one place only.
        shutil.rmtree(root / "site", ignore_errors=True)
        shutil.copytree(stage / "site", root / "site")
    place = os.path.relpath(root / "site")
    print(f"Open {place}/index.html; to search in it, too: python3 -m http.server -d {place}")


def _lead_to_copies(page: Path, root: Path, staged: Path) -> None:
    """Has a staged page link copies of what lies outside of `docs/`."""
    name = page.relative_to(root / "docs")

    def led(link: re.Match[str]) -> str:
        target, rest = link.groups()
        wanted = (page.parent / target).resolve()
        if wanted.is_relative_to(root / "docs") and wanted.suffix == ".md":
            return link[0]  # Zensical looks at these.
        if not wanted.is_relative_to(root) or not wanted.is_file():
            raise BrokenLink(f"docs/{name} links {target}, which is no file.")
        if wanted.is_relative_to(root / "docs"):
            return link[0]
        name_there = wanted.name.lstrip(".") + ("" if wanted.suffix in SHOWN else ".txt")  # Hidden files are left out.
        copy = staged / COPIES / wanted.relative_to(root).with_name(name_there)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(wanted, copy)
        return f"]({os.path.relpath(copy, (staged / name).parent)}{rest}"

    parts = _FENCED.split(page.read_text())
    parts[::2] = [_LINK.sub(led, part) for part in parts[::2]]
    (staged / name).write_text("".join(parts))


if __name__ == "__main__":
    main()
