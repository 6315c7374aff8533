"""How many processes `serve` begins where nobody says it: not those of a machine whose container may use one core."""

from pathlib import Path

import pytest

from server.fleet.cores import cores


@pytest.mark.parametrize(
    ("quota", "most"), [("100000 100000", 1), ("50000 100000", 1), ("150000 100000", 2), ("0 100000", 1)]
)
def test_a_quota_is_kept_to(quota: str, most: int, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert 1 <= cores(tmp_path / "cpu.max") <= most


@pytest.mark.parametrize("quota", ["max 100000", "", "nonsense"])
def test_without_one_it_is_what_the_scheduler_gives(quota: str, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert cores(tmp_path / "cpu.max") == cores(tmp_path / "none") >= 1
