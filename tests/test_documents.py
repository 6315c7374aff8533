"""README and docs/ are held to the code: every setting, command, route, file, metric and test they name exists."""

import dataclasses
import re
from pathlib import Path

import pytest

from server.cli import main
from server.openapi.web import document
from server.settings import Settings
from tests import test_operations

pytestmark = pytest.mark.pure

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
VARIABLES = {field.metadata["env"] for field in dataclasses.fields(Settings)}
# What a reader's shell, another program or our own `run` knows.
FOREIGN = {
    "TASKBEAM_ENV",
    "TASKBEAM_URL",
    "PROGRESS_URL",
    "PROGRESS_TOKEN",
    "LOGIN_PASSWORD",
    "POSTGRES_PASSWORD",
    "WEBHOOK_SECRET",
    "OWNER_URL",
    "SSL_CERT_FILE",
    "TASKBEAM_USER",
    "SO_REUSEPORT",  # of the kernel
}
PAGES = {"/", "/dashboard", "/docs", "/openapi.json", "/results/{name}", "/api/generate/ws", "/healthz", "/readyz"}
OF_RUN = {"test", "lock"}


@pytest.fixture(params=DOCUMENTS)
def text(request: pytest.FixtureRequest) -> str:
    return (ROOT / str(request.param)).read_text()


def code(text: str) -> str:
    """What stands in blocks and between backticks."""
    blocks = re.findall(r"^\s*```.*?\n(.*?)^\s*```", text, re.MULTILINE | re.DOTALL)
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))])


def settings_named(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])[A-Z]+(?:_[A-Z]+)+\b", code(text)))


def commands_named(text: str) -> set[str]:
    return set(re.findall(r"(?:\./run|(?<![\w@/.-])(?:/opt/taskbeam/bin/)?taskbeam) ([a-z]+)\b", code(text)))


def routes_named(text: str) -> set[str]:
    found = re.findall(
        r"(?<![\w./$}])/(?:api|results|healthz|readyz|metrics|docs|dashboard|openapi)[\w/{}.]*", code(text)
    )
    return {route.rstrip("/.") for route in found}


def files_named(text: str) -> set[str]:
    inside = re.findall(r"(?<![\w/.-])(?:docs|server|tests|sql|static)/[\w@./-]*\w", code(text))
    return set(inside)


def metrics_named(text: str) -> set[str]:
    return set(re.findall(r"\btaskbeam_[a-z_]+", code(text)))


def test_settings_exist(text: str) -> None:
    assert settings_named(text) - FOREIGN <= VARIABLES


def test_commands_exist(text: str) -> None:
    assert commands_named(text) - OF_RUN <= set(main.commands)


def test_routes_exist(text: str) -> None:
    known = {re.sub(r"\{.*?\}", "…", route) for route in {*document()["paths"], *PAGES}}
    # An address that is shown with a value in it is of the route that has a place for it.
    assert {re.sub(r"\{.*?\}", "…", route) for route in routes_named(text)} - {"/results", "/results/…"} <= known


def test_files_exist(text: str, request: pytest.FixtureRequest) -> None:
    folder = (ROOT / request.node.callspec.params["text"]).parent
    for target in re.findall(r"\]\(((?!https?:|#)[^)#]+)", text):
        assert (folder / target).exists(), target
    for path in files_named(text):
        assert (ROOT / path).exists(), path


def test_links_within_lead_somewhere(text: str) -> None:
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)", text, re.M)}
    for target in re.findall(r"\]\(#([^)]+)\)", text):
        assert target in anchors, target


def test_metrics_exist(text: str) -> None:
    of_serve = test_operations.told("The metrics of `serve`")
    names = {*test_operations.web(), *test_operations.dispatcher(), *of_serve}
    for name in metrics_named(text):
        whole = re.sub(r"_(bucket|sum|count)$", "", name)
        assert any(known.startswith(name) for known in names) if name.endswith("_") else whole in names, name


def test_tests_exist(text: str) -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"\btest_\w+\b(?!\.py)", code(text)):
        assert f"def {name}(" in tests, name


def test_the_page_on_deployment_names_each_of_its_files() -> None:
    text = (ROOT / "docs/deploy.md").read_text()
    for path in (ROOT / "docs/deploy").iterdir():
        named = path.name in text or f"*{path.suffix}" in text
        assert named or path.name in (".env", "users"), path.name


def test_what_it_reads_is_not_nothing() -> None:
    text = (ROOT / "docs/deploy.md").read_text()
    assert {"PUBLIC_URL", "DATA_DIR", "LOGIN_PASSWORD"} <= settings_named(text)
    assert commands_named(text) >= {"migrate", "web", "up"}
    assert {"/api/generate/callback", "/readyz", "/api/generate/webhook/{provider}"} <= routes_named(text)
    assert {"docs/deploy/login.sql", "tests/test_guard.py"} <= files_named(text)
    assert "taskbeam_streams_open" in metrics_named(text)
    false = "`NO_SUCH_SETTING`, `taskbeam nonsense`, `/api/nothing`, `docs/nothing.md`, `taskbeam_nothing`"
    assert settings_named(false) == {"NO_SUCH_SETTING"}
    assert commands_named(false) == {"nonsense"}
    assert routes_named(false) == {"/api/nothing"}
    assert files_named(false) == {"docs/nothing.md"}
    assert metrics_named(false) == {"taskbeam_nothing"}
