"""The documents' site, built from a copy."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts.docs import COPIES
from tests.docs.blocks import FOLDER
from tests.processes import BIN, ROOT


@pytest.fixture(scope="module")
def site(shared_copy: Path) -> Path:
    """The site, built as `make docs` builds it."""
    built = build(shared_copy)
    assert built.returncode == 0, built.stdout + built.stderr
    return shared_copy / "site"


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    """Builds the site of a folder, as `make docs` does that of this one."""
    command = [str(BIN / "python"), "-m", "src.scripts.docs", "--root", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_every_page_is_in_the_site_and_in_its_navigation(site: Path) -> None:
    pages = {path.relative_to(FOLDER / "docs").with_suffix(".html") for path in (FOLDER / "docs").rglob("*.md")}
    for page in pages:
        assert (site / page).is_file(), page
    linked = set(re.findall(r'href="\.?/?([\w/-]+\.html)"', (site / "index.html").read_text()))
    records = {str(page) for page in pages if page.match("decisions/0*")}
    assert {str(page) for page in pages} - linked <= records | {"index.html"}
    overview = (site / "decisions" / "index.html").read_text()
    assert [name for name in records if Path(name).name not in overview] == []


def test_it_asks_no_other_host(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text()
        loaded = re.findall(r'<(?:script|img|iframe|source)\b[^>]*?src="([^"]+)"', text)
        loaded += re.findall(r'<link\b(?![^>]*rel="(?:canonical|next|prev)")[^>]*?href="([^"]+)"', text)
        assert [address for address in loaded if re.match(r"(\w+:)?//", address)] == [], page
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", style.read_text()), style


def test_no_link_leads_nowhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        if page.is_relative_to(site / COPIES):
            continue
        for target in re.findall(r'<a\b[^>]*?href="([^"#?:]+)[#?"]', page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(site)}: {target}"


@pytest.mark.parametrize("link", ["nowhere.md", "cache.md#nowhere", "../src/nowhere.py", "../../outside.txt"])
def test_a_broken_link_is_refused(tmp_path: Path, link: str) -> None:
    (tmp_path / "docs").mkdir()
    shutil.copyfile(FOLDER / "docs" / "cache.md", tmp_path / "docs" / "cache.md")
    (tmp_path / "docs" / "index.md").write_text(f"# A page\n\n[It]({link}) is not there.\n")
    (tmp_path / "mkdocs.yml").write_text("site_name: A site\nuse_directory_urls: false\n")
    assert build(tmp_path).returncode == 1
