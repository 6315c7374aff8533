"""The README tells all that there is of settings and routes; that what it names exists is in test_documents.py."""

import dataclasses
import re
from pathlib import Path

import pytest

from server.cli import main
from server.openapi.web import document
from server.settings import Settings

pytestmark = pytest.mark.pure

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
VARIABLES = {field.metadata["env"]: field for field in dataclasses.fields(Settings)}


def test_every_setting_is_told_and_no_other() -> None:
    table = README[README.index("## Settings") : README.index("## Run it for real")]
    told = set(re.findall(r"`([A-Z][A-Z_]+)`", table))
    assert told == set(VARIABLES)


def test_defaults_are_the_code_s() -> None:
    for row in re.findall(r"^\| (`[A-Z].*?) \| (.*?) \|", README, re.MULTILINE):
        names, defaults = re.findall(r"`([A-Z_]+)`", row[0]), re.findall(r"`([^`]+)`", row[1])
        if not defaults or len(defaults) != len(names) or defaults[0] in VARIABLES:
            continue  # told in words
        for name, default in zip(names, defaults, strict=True):
            known = VARIABLES[name].default
            assert default == (f"{known:g}" if isinstance(known, float) else str(known)), name


def test_the_commands_it_lives_by_are_told() -> None:
    ours = set(re.findall(r"(?:\./run|^taskbeam) ([a-z]+)", README, re.MULTILINE))
    assert {"up", "test", "migrate", "bench", "settings", "serve", "dispatcher"} <= ours
    for line in (ROOT / "Procfile").read_text().splitlines():
        assert line.split()[2] in main.commands


def test_routes_are_told() -> None:
    for path in document()["paths"]:
        assert path in README, path
