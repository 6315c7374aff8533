"""docs/operations.md is held to the code: every metric and every event of the log is told, and nothing else."""

import ast
import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from server.db import Pool
from server.dispatch import backlog as dispatcher_backlog
from server.dispatch.metrics import DispatcherMetrics
from server.metrics import Metrics, ProcessMetrics
from server.tasks import backlog as web_backlog

pytestmark = pytest.mark.pure

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "operations.md").read_text()
LEVELS = {"debug", "info", "warning", "error", "critical"}
EVERY_LINE = {"event", "level", "timestamp", "process"}


class _Answers:
    """Stands in for a pool: says 0 to everything that is asked for."""

    def acquire(self) -> "_Answers":
        return self

    async def __aenter__(self) -> "_Answers":
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def fetchval(self, *_: object) -> float:
        return 0.0

    async def fetchrow(self, *_: object) -> dict[str, float]:
        return {"pending": 0, "processing": 0, "unsent": 0, "oldest": 0.0}

    async def fetch(self, *_: object) -> list[dict[str, Any]]:
        return [{"lane": "messages", "waiting": 0, "delayed": 0, "leased": 0, "oldest": 0.0}]


SIZES = SimpleNamespace(get_size=lambda: 1, get_idle_size=lambda: 1, get_max_size=lambda: 1)
ANSWERS = cast(Pool, _Answers())


def shown(metrics: ProcessMetrics, read: Any) -> dict[str, tuple[str, set[str]]]:
    """What a process with these metrics shows: type and labels of each."""

    async def text() -> str:
        metrics.watch(cast(Pool, SIZES), read)
        return (await metrics.exposition()).decode()

    # A counter that nobody has counted with yet has no sample to show its labels.
    found = {}
    for family in text_string_to_metric_families(asyncio.run(text())):
        name = family.name + ("_total" if family.type == "counter" else "")
        found[name] = (family.type, {label for sample in family.samples for label in sample.labels} - {"le"})
    return found


def web() -> dict[str, tuple[str, set[str]]]:
    metrics = Metrics()
    metrics.requests.labels("/", "GET", 200)

    async def read() -> Sequence[Metric]:
        return await web_backlog.read_backlog(ANSWERS)

    return shown(metrics, read)


def dispatcher() -> dict[str, tuple[str, set[str]]]:
    async def read() -> Sequence[Metric]:
        return await dispatcher_backlog.read_backlog(ANSWERS)

    return shown(DispatcherMetrics(16), read)


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def rows(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in re.split(r" \|(?= )", line.strip("|"))]


def told(title: str) -> dict[str, tuple[str, set[str]]]:
    return {
        name.strip(" `"): (kind, set(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels, *_ in rows(section(title))
        if not name.startswith("`process_")
    }


def without_process(metrics: dict[str, tuple[str, set[str]]]) -> dict[str, tuple[str, set[str]]]:
    of_the_process = {name for name in metrics if name.startswith("process_")}
    assert of_the_process
    return {name: shape for name, shape in metrics.items() if name not in of_the_process}


def test_each_metric_is_told_with_its_type_and_labels() -> None:
    every = told("The metrics of every process")
    assert without_process(web()) == {**every, **told("The metrics of a web process")}
    assert without_process(dispatcher()) == {**every, **told("The metrics of a dispatcher process")}


def test_what_is_of_the_whole_deployment_says_so_where_it_is_read() -> None:
    for name in web().keys() | dispatcher().keys():
        if name.startswith("taskbeam_deployment_"):
            row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}`"))
            assert "`max()`" in row, name
    assert not re.search(r"sum[^(\n]*\(taskbeam_deployment", PAGE)


def test_alerts_are_over_metrics_and_labels_that_there_are() -> None:
    known = {**web(), **dispatcher(), **told("The metrics of `serve`")}
    alerts = section("Alerts")
    expressions = re.findall(r"expr: (.*)", alerts)
    assert len(expressions) == alerts.count("- alert:") >= 8
    for expression in expressions:
        used = re.findall(r"(taskbeam_\w+)(?:\{(\w+)=~?\"([^\"]+)\"\})?", expression)
        assert used, expression
        for name, label, values in used:
            family = name.removesuffix("_bucket")
            assert family in known, name
            assert (known[family][0] == "histogram") == name.endswith("_bucket"), name
            assert not label or label in known[family][1], expression
            assert not values or set(values.split("|")) <= {"failed", "refused"}, expression
        for label in re.findall(r"by \(([\w, ]+)\)", expression):
            assert set(label.split(", ")) <= {"lane", "instance", "slot", "le"}, expression


@cache
def events() -> dict[str, set[str]]:
    """Each event that is logged, with the names of the fields given where it is."""
    found: dict[str, set[str]] = {}
    sources = [path.read_text() for path in (ROOT / "server").rglob("*.py")]
    for source in filter(re.compile(r"^log = ", re.MULTILINE).search, sources):
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called == "say" or called.removeprefix("log.") in LEVELS or called.endswith("._say_once"):
                names = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
                assert len(names) == 1 or called == "log.error", ast.unparse(node)  # it may hand on what it was given
                fields = {keyword.arg for keyword in node.keywords if keyword.arg}
                for name in names:
                    found.setdefault(str(name), set()).update(fields)
    return found


def test_each_event_of_the_log_is_told() -> None:
    table = {
        event: processes.strip()
        for names, processes, _ in rows(section("The log"))
        for event in re.findall(r"`(\w+)`", names)
    }
    assert table.keys() == events().keys()
    assert all(
        set(processes.split(", ")) <= {"web", "serve", "dispatcher", "generator"} for processes in table.values()
    )


def test_the_examples_are_lines_as_they_are_logged() -> None:
    examples = [json.loads(line) for line in PAGE.splitlines() if line.startswith('{"') and '"event"' in line]
    assert len(examples) >= 8
    # What travels with every line below a request or a delivery, or comes by `**` where a message is named.
    travelling = {"request_id", "task_id", "attempt", "message_id", "reason"}
    for line in examples:
        assert line.keys() >= EVERY_LINE
        given = events()[line["event"]]
        assert given - {"reason", "exc_info"} <= line.keys(), line["event"]
        assert line.keys() <= EVERY_LINE | given | travelling, line["event"]


def test_the_readme_leads_here() -> None:
    assert "docs/operations.md" in (ROOT / "README.md").read_text()
