"""Blocks that are looked at without anything running."""

import configparser
import json
import re
import tomllib
from pathlib import Path

import yaml

from app.core.config import Settings
from app.core.settings.errors import variables_of
from app.core.utils.redis_link.address import parse
from tests.docs.blocks import Block
from tests.nginx import complaints
from tests.processes import ROOT


def read_data(block: Block) -> None:
    """Raises: an error of the reader's own for what cannot be read."""
    if block.language == "json":
        json.loads(block.text)
    elif block.language == "toml":
        tomllib.loads(block.text)
    elif block.language == "ini":
        configparser.ConfigParser().read_string(block.text)
    else:
        assert list(yaml.safe_load_all(block.text)), "it is empty"


def apply_settings(block: Block, folder: Path) -> None:
    """Has the app's settings read the block as their file. Raises: SettingsError; AssertionError for another name."""
    names = re.findall(r"^([A-Z_]+)=", block.text, re.MULTILINE)
    assert names, "it sets nothing"
    assert set(names) <= set(variables_of(Settings)) | {"EMBEDDED_SERVICES"}
    file = folder / "settings.env"
    file.write_text(block.text)
    Settings(_env_file=file)


def try_nginx(block: Block, folder: Path) -> None:
    """Raises: AssertionError with nginx's complaints. What is not a whole server stands in one."""
    text = block.text
    if "server {" not in text:
        text = f"server {{ listen 80; access_log off;\n{text}\n}}"
    for name in set(re.findall(r"proxy_pass https?://(\w+);", text)) - set(re.findall(r"upstream (\w+)", text)):
        text = f"upstream {name} {{ server 127.0.0.1:8000; }}\n{text}"
    assert complaints(text, {}, folder) == ""


def find_paths(block: Block) -> None:
    """Raises: AssertionError for a path that this project does not have."""
    for line in filter(str.strip, block.text.splitlines()):
        path = ROOT / line.split()[0]
        assert path.exists(), line


def read_redis_addresses(block: Block) -> None:
    """Raises: ValueError for what is no address of Redis/Valkey."""
    for line in filter(str.strip, block.text.splitlines()):
        parse(line.split()[0])


def find_target(block: Block) -> None:
    """Raises: AssertionError unless the comment says `make NAME`, with a target that there is."""
    program, name = block.rest.split()[:2]
    assert program == "make"
    assert re.search(rf"^{re.escape(name)}:", (ROOT / "Makefile").read_text(), re.MULTILINE), name
