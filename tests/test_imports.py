"""Holds the rooms of the server to importing downwards only, and the pure modules to doing nothing but compute.

When this fails: move what you need to where both may see it (a pure module, or a top-level one), or hand it over
as an argument from where the process is put together. Only a new room, or a new way to put a process together,
is a reason to change a table here.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.pure

ROOT = Path(__file__).parent.parent
# Here processes are put together: these may import every room, and no room imports them.
TOP = {
    "server.app",
    "server.cli",
    "server.serve",
    "server.starting",
    "server.up",
    "server.upkeep",
}
# room -> the other rooms it may import; top-level modules that are not in TOP are open to all but the embedded room
ROOMS: dict[str, set[str]] = {
    "tasks": set(),
    "push": {"tasks"},
    "dispatch": {"tasks"},
    "images": set(),
    "generator": set(),
    "embedded": set(),
    "fleet": {"embedded"},  # several web processes behind one port
    "identity": set(),
    "openapi": {"tasks", "push", "dispatch", "identity"},  # describes what they read and encode
    "bench": {"tasks", "push", "dispatch", "identity", "generator", "embedded"},  # measures the whole, from above
    "clients": {"tasks"},  # played browsers, and the judge of what they saw
    "chaos": {"tasks", "push", "dispatch", "generator", "embedded", "clients"},  # breaks the whole
    "verify": {"tasks", "clients"},  # looks at a deployment from outside, so at no room of a server
}
# (who, whom): what the tables do not say. process.py is where a room's own process is put together.
BESIDES = {
    ("server.dispatch.process", "server.openapi.dispatcher"),
    ("server.dispatch.process", "server.serve"),
    ("server.dispatch.process", "server.starting"),
    ("server.generator.process", "server.serve"),
    ("server.generator.app", "server.dispatch.signature"),  # the far end of the protocol: it verifies what we sign
    ("server.serve", "server.app"),
    ("server.values", "server.dispatch.retry"),  # pure: the form of an expression
}
EMBEDDED_MAY_IMPORT = {"server.settings"}
PURE = {
    "server.auth",
    "server.bench.figures",
    "server.bench.frames",
    "server.bench.plot",
    "server.bench.table",
    "server.bench.times",
    "server.clients.judge",
    "server.clients.times",
    "server.chaos.recovery",
    "server.chaos.schedule",
    "server.clients.views",
    "server.database_url",
    "server.dispatch.job",
    "server.dispatch.message",
    "server.dispatch.news",
    "server.dispatch.picture",
    "server.dispatch.result",
    "server.dispatch.retry",
    "server.dispatch.shown",
    "server.dispatch.signature",
    "server.dispatch.subject",
    "server.dispatch.token",
    "server.dispatch.verdict",
    "server.dispatch.webhook_signature",
    "server.contradictions",
    "server.errors",
    "server.fleet.exposition",
    "server.generator.draw",
    "server.generators",
    "server.health",
    "server.identity.cookies",
    "server.identity.token",
    "server.openapi.document",
    "server.openapi.operation",
    "server.push.hub",
    "server.push.subscriptions",
    "server.push.wire",
    "server.redis_url",
    "server.settings",
    "server.tally",
    "server.tasks.pace",
    "server.tasks.snapshot",
    "server.tasks.state",
    "server.template",
    "server.values",
    "server.verify.outside",
    "server.verify.report",
    "server.version",
}
NOT_IN_PURE = {"asyncio", "httpx", "random", "redis", "secrets", "select", "socket", "subprocess", "threading", "time"}
CLOCKS = {"now", "today", "utcnow"}


@cache
def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted((ROOT / "server").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(), path.name)
    return found


@cache
def imported(name: str) -> frozenset[str]:
    """Every module that `name` imports, also inside functions; for `from server.push import hub` that is the hub."""
    found = set()
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are written out in full here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {full if full in modules() else str(node.module) for full in names}
    return frozenset(found)


def ours() -> Iterator[tuple[str, str]]:
    for name in modules():
        for other in imported(name):
            if other.partition(".")[0] == "server" and (name, other) not in BESIDES:
                yield name, other


def room(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if len(parts) > 2 or (ROOT / "server" / parts[-1]).is_dir() else None


def test_every_room_is_known() -> None:
    rooms = {path.parent.name for path in (ROOT / "server").rglob("*.py")} - {"server"}
    assert rooms <= ROOMS.keys(), "a new room: say in ROOMS what it may import"


def test_rooms_import_downwards_only() -> None:
    wrong = []
    for name, other in ours():
        mine, theirs = room(name), room(other)
        if mine is None or theirs in (mine, None):
            continue
        if theirs not in ROOMS[mine]:
            allowed = ", ".join(sorted(ROOMS[mine])) or "no other room"
            wrong.append(f"{name} imports {other}: {mine} may import {allowed}")
    assert not wrong, "\n".join(wrong)


def test_no_room_imports_what_is_put_together_from_it() -> None:
    rooms = [(name, other) for name, other in ours() if room(name) not in (None, "bench", "chaos")]
    wrong = [f"{name} imports {other}" for name, other in rooms if other in TOP]
    assert not wrong, "\n".join(wrong)


def test_modules_below_the_rooms_import_none_of_them() -> None:
    below = [(n, o) for n, o in ours() if room(n) is None and n not in TOP]
    wrong = [f"{name} imports {other}" for name, other in below if room(other) is not None or other in TOP]
    assert not wrong, "\n".join(wrong)


def test_only_serve_starts_the_application() -> None:
    wrong = [name for name, other in ours() if other == "server.app"]
    assert not wrong, f"server.app is imported by {', '.join(wrong)}"


def test_the_embedded_services_stand_alone() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, other in ours()
        if room(name) == "embedded" and room(other) != "embedded" and other not in EMBEDDED_MAY_IMPORT
    ]
    assert not wrong, "\n".join(wrong)


def test_the_exceptions_are_still_needed_or_allowed_for() -> None:
    optional = {("server.values", "server.dispatch.retry")}
    unused = [pair for pair in BESIDES - optional if pair[0] in modules() and pair[1] not in imported(pair[0])]
    assert not unused, f"take these out of BESIDES: {unused}"
    assert modules().keys() >= TOP | PURE


def calls_itself_pure(tree: ast.Module) -> bool:
    text = ast.get_docstring(tree) or ""
    return any(word in text for word in ("Pure.", "Pure:", "Pure and", ", pure:"))


def test_what_calls_itself_pure_is_held_to_it() -> None:
    said = {name for name, tree in modules().items() if calls_itself_pure(tree)}
    assert "server.push.hub" in said
    assert said <= PURE, f"add to PURE: {said - PURE}"


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_modules_only_compute(name: str) -> None:
    # Seeded: the same words, the same picture; the same seed, the same schedule.
    allowed = {"random"} if name in ("server.generator.draw", "server.chaos.schedule") else set()
    outside = {other.partition(".")[0] for other in imported(name)} & NOT_IN_PURE - allowed
    assert not outside, f"{name} imports {outside}: hand the time, the randomness or the answer in as an argument"
    inside = {other for other in imported(name) if other.startswith("server.")} - PURE - {"server", "server.push"}
    assert not inside, f"{name} imports {inside}, which is not pure"
    for node in ast.walk(modules()[name]):
        place = f"{name}, line {getattr(node, 'lineno', 0)}"
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith), f"{place}: waits"
        assert not (isinstance(node, ast.Global)), f"{place}: module-level state"
        if isinstance(node, ast.Call):
            called = node.func
            assert not (isinstance(called, ast.Attribute) and called.attr in CLOCKS), f"{place}: a clock"
            assert not (isinstance(called, ast.Name) and called.id in ("open", "print", "input", "eval", "exec")), place
