"""What the command line of the bench refuses, before it starts anything."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from server.bench import command

pytestmark = pytest.mark.pure


@pytest.fixture(autouse=True)
def _nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it began to measure")

    monkeypatch.setattr(command, "_run", refuse)


def refused(*words: str) -> str:
    done = CliRunner().invoke(command.bench, words)
    assert done.exit_code == 2, done.output
    return " ".join(done.output.split())


def test_a_plot_that_cannot_be_written_is_refused_before_measuring(tmp_path: Path) -> None:
    assert "cannot be written" in refused("push", "--svg", str(tmp_path / "missing" / "bench.svg"))
    assert "cannot be written" in refused("--svg", str(tmp_path / "missing" / "bench.svg"))
    assert "is a directory" in refused("push", "--svg", str(tmp_path))


@pytest.mark.parametrize("option", [("--json",), ("--floor",), ("--streams", "50"), ("--against", "nchan")])
def test_an_option_before_the_part_it_would_not_reach_is_refused(option: tuple[str, ...]) -> None:
    assert f"{option[0]} would have no effect here: put it after 'push'" in refused(*option, "push")
