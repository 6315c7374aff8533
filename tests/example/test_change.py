"""The change from polling to push: how small it is, and that the page that explains it shows just that."""

import json
import re
from pathlib import Path

from tests.example.apps import BEFORE, PATCH, ROOT, after, before, difference

LINES_MAX = 9
PAGE = (ROOT / "docs/from-polling-to-push.md").read_text()


def test_it_is_under_ten_lines(tmp_path: Path) -> None:
    lines = difference(before(tmp_path / "before"), after(tmp_path / "after"))
    changed = [line for line in lines if re.match(r"[+-](?![+-]{2} )", line)]
    assert 0 < len(changed) <= LINES_MAX, changed
    added = sum(line.startswith("+") for line in changed)
    told = f"{len(changed)} lines ({added} added, {len(changed) - added} removed)"
    assert told in PAGE
    # The patch says what the folders say, and no more.
    assert [line for line in PATCH.read_text().splitlines() if line in changed] == changed


def test_the_page_shows_the_patch() -> None:
    shown = re.findall(r"^```diff\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert sorted(shown) == sorted(re.findall(r"^--- a/.*?(?=^--- a/|\Z)", PATCH.read_text(), re.MULTILINE | re.DOTALL))


def test_the_page_names_what_may_go_afterwards() -> None:
    unused = set(re.findall(r"^rm (.*)$", PAGE, re.MULTILINE)[0].split())
    assert unused
    for name in unused:
        assert (BEFORE / name).is_file()


def test_versions_are_pinned() -> None:
    package = json.loads((BEFORE / "package.json").read_text())
    lock = json.loads((BEFORE / "package-lock.json").read_text())["packages"]
    for name, version in package["dependencies"].items():
        assert lock[f"node_modules/{name}"]["version"] == version
    assert not [name for name, entry in lock.items() if "resolved" in entry]
    ours = json.loads((ROOT / "static/package.json").read_text())
    assert f'"taskbeam": "file:taskbeam-{ours["version"]}.tgz"' in PATCH.read_text()
