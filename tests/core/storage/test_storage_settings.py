"""Where files are stored, as the settings say it, and what is loaded for that."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.core.config import SettingsError, StorageSettings
from app.core.settings.weaknesses import weaknesses
from tests.processes import ROOT

MEDIA = "https://media.example.com/files"


def test_obstore_is_loaded_for_a_bucket_only() -> None:
    code = "import src, sys; from app.main import app; print('obstore' in sys.modules)"
    environment = os.environ | {"STORAGE_URL": "file:///nowhere"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["False"], done.stderr


def test_without_obstore_the_remedy_is_one_line() -> None:
    code = """
import src, sys, asyncio
sys.modules["obstore"] = None
from app.core.config import StorageSettings
from app.core.storage import open_storage
async def main():
    async with open_storage(StorageSettings()): pass
asyncio.run(main())
"""
    environment = os.environ | {"STORAGE_URL": "s3://bucket", "MEDIA_URL": MEDIA}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [
        'STORAGE_URL is a bucket: install the extra "s3" (pip install obstore).'
    ]


@pytest.mark.parametrize(
    "url",
    ["uploads", "/uploads", "file://uploads", "file://host/uploads", "ftp://x/y", "s3://", "s3://A", "s3://a/b?c"],
)
def test_a_place_that_is_none_is_one_line(url: str) -> None:
    with pytest.raises(SettingsError) as stopped:
        StorageSettings(STORAGE_URL=url)
    assert stopped.value.code == (
        "STORAGE_URL must be file:// and the absolute path of a folder, or s3://bucket or s3://bucket/prefix."
    )


def test_a_bucket_needs_a_public_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDIA_URL")
    with pytest.raises(SettingsError, match="MEDIA_URL must be set where STORAGE_URL is a bucket"):
        StorageSettings(STORAGE_URL="s3://bucket")


def test_in_production_a_folder_needs_a_public_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MEDIA_URL")
    folder = f"file://{tmp_path}"
    assert [weak.name for weak in weaknesses(StorageSettings(STORAGE_URL=folder))] == ["MEDIA_URL"]
    assert weaknesses(StorageSettings(STORAGE_URL=folder, MEDIA_URL=MEDIA)) == []


def test_the_addresses_of_make_run_have_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDIA_URL")
    monkeypatch.setenv("PORT", "8123")
    assert StorageSettings().MEDIA_URL == "http://localhost:8123/api/v1/media"


@pytest.mark.parametrize(
    "url",
    ["media", "//host/media", "ftp://host", "https://", "https://user@host/x", "https://host/x?a", "https://h/a b"],
)
def test_a_public_address_that_is_none_is_one_line(url: str) -> None:
    with pytest.raises(SettingsError) as stopped:
        StorageSettings(MEDIA_URL=url)
    assert stopped.value.code == (
        "MEDIA_URL must be the http(s) URL, without a query, to which a stored file's key is added."
    )


def test_half_a_login_is_refused() -> None:
    with pytest.raises(SettingsError, match="must be set together"):
        StorageSettings(STORAGE_S3_ACCESS_KEY_ID="only")


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    assert StorageSettings(STORAGE_URL=f"file://{tmp_path}/my%20uploads").storage_folder == tmp_path / "my uploads"
