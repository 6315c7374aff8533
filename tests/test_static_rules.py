"""Holds files to a readable length, and the pages to loading nothing from elsewhere and nothing that CSP forbids.

The server sends `default-src 'none'; script-src 'self'; style-src 'self'`: an inline script or style does not run.
"""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytestmark = pytest.mark.pure

ROOT = Path(__file__).parent.parent
LINES_MAX = 400
LOADING = {"src", "srcset", "poster", "data", "action", "formaction", "background", "manifest"}
FOREIGN = re.compile(r"\s*(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
IN_SCRIPT = re.compile(
    r"""(?:\bfrom\s*|\bimport\s*\(?\s*|\bimportScripts\s*\(\s*|\bfetch\s*\(\s*|\bnew\s+(?:EventSource|WebSocket|Worker|"""
    r"""SharedWorker|URL)\s*\(\s*|\.src\s*=\s*)["'`](?:[a-z]+:)?//""",
    re.IGNORECASE,
)
IN_STYLE = re.compile(r"""(?:@import\s*(?:url\(\s*)?|url\(\s*)["']?(?:[a-z]+:)?//""", re.IGNORECASE)


class Page(HTMLParser):
    """Collects what a page must not do."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong: list[str] = []
        self._script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self._script = tag == "script"
        if tag == "style" or "style" in given:
            self._note(f"<{tag}> with inline style")
        if tag == "script" and "src" not in given:
            self._note("inline script")
        if tag == "base":
            self._note("<base>")
        for name, value in given.items():
            if name.startswith("on"):
                self._note(f"<{tag} {name}=…>")
            if value.strip().lower().startswith("javascript:"):
                self._note(f"<{tag} {name}> runs script")
            loads = name in LOADING or (name == "href" and tag != "a")
            if loads and any(FOREIGN.match(part) for part in value.split(",")):
                self._note(f"<{tag} {name}> from {value.strip()[:60]}")

    def handle_data(self, data: str) -> None:
        if self._script and data.strip():
            self._note("inline script")

    def handle_endtag(self, tag: str) -> None:
        self._script = False

    def _note(self, what: str) -> None:
        self.wrong.append(f"line {self.getpos()[0]}: {what}")


def offences(name: str, text: str) -> list[str]:
    """What a file of this name must not do, and where."""
    if name.endswith((".html", ".svg")):
        page = Page()
        page.feed(text)
        page.close()
        return page.wrong
    pattern = IN_STYLE if name.endswith(".css") else IN_SCRIPT
    return [f"line {text.count(chr(10), 0, m.start()) + 1}: {m[0].strip()}" for m in pattern.finditer(text)]


def pages() -> Iterator[Path]:
    for path in sorted((ROOT / "static").rglob("*")):
        if path.suffix in (".html", ".svg", ".js", ".mjs", ".css"):
            yield path


def test_pages_load_nothing_from_elsewhere_and_nothing_inline() -> None:
    found = [f"{path.relative_to(ROOT)}, {what}" for path in pages() for what in offences(path.name, path.read_text())]
    assert not found, "serve it from static/, in a file of its own:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.html", '<script src="https://cdn.test/x.js"></script>'),
        ("a.html", "<script src=//cdn.test/x.js></script>"),
        ("a.html", '<link rel="stylesheet" href="HTTPS://cdn.test/x.css">'),
        ("a.html", '<img srcset="/a.png 1x, https://cdn.test/a.png 2x">'),
        ("a.html", "<form action='http://h.test/'></form>"),
        ("a.html", "<script>go()</script>"),
        ("a.html", "<script src='/x.js'>go()</script>"),
        ("a.html", "<style>p{}</style>"),
        ("a.html", '<p style="color:red">'),
        ("a.html", '<button onclick="go()">'),
        ("a.html", "<a href=' javascript:go()'>x</a>"),
        ("a.html", "<base href='/x/'>"),
        ("a.svg", "<svg><script>go()</script></svg>"),
        ("a.js", "import x from 'https://cdn.test/x.js'"),
        ("a.js", 'import "//cdn.test/x.js"'),
        ("a.js", 'const x = await import("https://cdn.test/x.js")'),
        ("a.js", "fetch(`https://h.test/`)"),
        ("a.js", 'new WebSocket("wss://h.test/")'),
        ("a.css", '@import "https://cdn.test/x.css";'),
        ("a.css", "p { background: url(//cdn.test/x.png) }"),
    ],
)
def test_it_would_be_noticed(name: str, text: str) -> None:
    assert offences(name, text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.html", '<script type="module" src="/static/x.js"></script><link rel="icon" href="data:,">'),
        ("a.html", '<a href="https://docs.test/">docs</a><p>see https://h.test/ and // comments</p>'),
        ("a.js", "// see https://h.test/\nimport x from './x.js'; fetch('/api'); new URL(a, location.href)"),
        ("a.css", "p { background: url(/static/x.png) } /* https://h.test/ */"),
    ],
)
def test_what_is_allowed(name: str, text: str) -> None:
    assert offences(name, text) == []


def test_no_file_is_so_long_that_a_noun_hides_in_it() -> None:
    files = [path for folder in ("server", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
    assert files
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert not {name: lines for name, lines in long.items() if lines > LINES_MAX}
