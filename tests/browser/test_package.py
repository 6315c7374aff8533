"""What goes to npm: that it is small, whole, typed, and runs where it is imported; the hook with the real React.

TypeScript and React come from npm once, into a folder of the machine's temporary files. Where node is absent or the
registry refuses, these tests are skipped and say so.
"""

import gzip
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import BrowserContext, Page

from tests.browser.conftest import Seen
from tests.browser.scripted import STATIC, SYNC, Request, Scripted, change, scripted, task

pytestmark = pytest.mark.browser

# 5,000 until there were tickets: what a browser does by itself, coming back, is done here with a new one each time.
CLIENT_BYTES_MAX = 5_500
INSTALL_SECONDS_MAX = 120
RUN_SECONDS_MAX = 60
TOOLS = {"typescript": "5.9.3", "react": "18.3.1", "react-dom": "18.3.1"}
SOURCES = ["client", "all", "share", "react", "types"]
PACKAGE: dict[str, Any] = json.loads((STATIC / "package.json").read_text())
EMIT = ["--strict", "--allowJs", "--declaration", "--emitDeclarationOnly", "--module", "nodenext", "--target", "es2022"]
LIBRARIES = ["--lib", "es2023,dom"]

# Uses what is promised, in the ways that TypeScript is to accept; the lines marked are to be errors, and only they.
CONSUMER = """
import { follow, generate, list, remove, Problem, isTerminal, type Snapshot, type Options } from 'taskbeam';
import { followAll } from 'taskbeam/all';
import { share } from 'taskbeam/share';
import { useTask } from 'taskbeam/react';
import type { State } from 'taskbeam/types';

const session = async (): Promise<string | undefined> => undefined;
const options: Options = { baseUrl: 'https://api.test', getToken: session, onState: (state: State) => void state.via };
const handle = follow('t', { ...options, after: 3, onUpdate: (task) => void (task.progress ?? 0).toFixed() });
const last: Promise<Snapshot> = handle.done;
const ended: boolean = await last.then(isTerminal, (error) => error instanceof Problem && error.code === 'x');
const { taskId } = await generate('a fox', { seed: 1 }, { getToken: () => null });
const { tasks, cursor } = await list({ limit: 5 });
const page = share({ baseUrl: '/api', ticket: async () => 'x' });
page.follow(taskId).close();
followAll({ onUpdate: ({ status }) => void (status === 'pending'), onDeleted: (id) => void id.length }).close();
const { outcome } = await remove(taskId, { baseUrl: '/api' });
const seen = useTask(taskId, { follow: page.follow }).task?.result;
export { ended, tasks, cursor, seen, outcome };
// @ts-expect-error a task has no such status
const never: boolean = tasks[0].status === 'done';
// @ts-expect-error a token is text
follow('t', { getToken: () => 1 });
// @ts-expect-error and so is a ticket, to be waited for
follow('t', { ticket: () => 'x' });
"""


def run(*argv: str, cwd: Path, seconds: float = RUN_SECONDS_MAX) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tools() -> Path:
    """A folder with TypeScript and React in it."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("NODE IS ABSENT: the npm package is not tested")
    wanted = [f"{name}@{version}" for name, version in TOOLS.items()]
    folder = Path(tempfile.gettempdir()) / f"taskbeam-npm-{os.getuid()}-{'-'.join(TOOLS.values())}"
    if not all((folder / "node_modules" / name / "package.json").exists() for name in TOOLS):
        folder.mkdir(mode=0o700, exist_ok=True)
        argv = [npm, "install", "--no-save", "--no-audit", "--no-fund", *wanted]
        done = subprocess.run(
            argv, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX, check=False
        )
        if done.returncode != 0:
            pytest.skip(f"THE NPM REGISTRY REFUSES: the npm package is not tested ({done.stderr[-300:]})")
    return folder


@pytest.fixture
def installed(tools: Path, tmp_path: Path) -> Path:
    """A project that has installed what `npm pack` makes."""
    (made,) = json.loads(run("npm", "pack", "--json", "--pack-destination", str(tmp_path), cwd=STATIC))
    package = tmp_path / "node_modules" / "taskbeam"
    package.mkdir(parents=True)
    run("tar", "xzf", str(tmp_path / made["filename"]), "--strip-components=1", "-C", str(package), cwd=tmp_path)
    (tmp_path / "node_modules" / "react").symlink_to(tools / "node_modules" / "react")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    return tmp_path


def test_the_client_is_small() -> None:
    size = len(gzip.compress((STATIC / "client.js").read_bytes(), 9))
    assert size < CLIENT_BYTES_MAX, f"client.js is {size} bytes gzipped, as it is shipped"


def test_it_asks_nothing_of_who_installs_it() -> None:
    assert "scripts" not in PACKAGE
    assert "dependencies" not in PACKAGE
    assert (PACKAGE["name"], PACKAGE["type"], PACKAGE["license"]) == ("taskbeam", "module", "MIT")
    assert (STATIC / "LICENSE").read_text() == (STATIC.parent / "LICENSE").read_text()


def test_the_declarations_are_those_of_the_sources(tools: Path, tmp_path: Path) -> None:
    tsc = str(tools / "node_modules/.bin/tsc")
    sources = [str(STATIC / f"{name}.js") for name in SOURCES]
    run(tsc, *EMIT, *LIBRARIES, "--outDir", str(tmp_path), *sources, cwd=tmp_path)
    stale = [name for name in SOURCES if (tmp_path / f"{name}.d.ts").read_text() != _declared(name)]
    command = f"rm static/*.d.ts; tsc {' '.join([*EMIT, *LIBRARIES])} --outDir static " + " ".join(
        f"static/{name}.js" for name in SOURCES
    )
    assert not stale, f"made anew by: {command}"


def _declared(name: str) -> str:
    path = STATIC / f"{name}.d.ts"
    return path.read_text() if path.exists() else ""


def test_it_is_whole_and_typed_where_it_is_installed(installed: Path, tools: Path) -> None:
    # Imported on a server too, by pages that are rendered there: nothing may need a document before it is used.
    names = "Promise.all(['taskbeam', 'taskbeam/all', 'taskbeam/share', 'taskbeam/react'].map((name) => import(name)))"
    script = f"const all = await {names}; console.log(all.flatMap(Object.keys).join())"
    exported = run("node", "--input-type=module", "--eval", script, cwd=installed).strip().split(",")
    assert {"follow", "generate", "list", "remove", "Problem", "followAll", "share", "useTask"} <= set(exported)
    assert (installed / "node_modules/taskbeam/stream.js").exists(), "what a token needs is loaded when there is one"
    (installed / "consumer.ts").write_text(CONSUMER)
    tsc = str(tools / "node_modules/.bin/tsc")
    strict = ["--noEmit", "--strict", "--module", "nodenext", "--target", "es2022", *LIBRARIES]
    run(tsc, *strict, "consumer.ts", cwd=installed)


# React has no modules for browsers: its scripts make globals, and the import map leads `react` to them.
IMPORTS = {
    "imports": {
        "react": "data:text/javascript,export const { useEffect, useRef, useState } = globalThis.React",
        "taskbeam/react": "/static/react.js",
    }
}
APP = """async () => {
  const { useTask } = await import('taskbeam/react');
  window.seen = [];
  const Task = ({ id }) => {
    const { task, state, error } = useTask(id, { getToken: () => 'mine' });
    const text = [id, task?.version, task?.status, state?.phase, error?.code].map((part) => part ?? '-').join(' ');
    if (seen.at(-1) !== text) seen.push(text);
    return React.createElement('output', null, text);
  };
  const root = ReactDOM.createRoot(document.body.appendChild(document.createElement('main')));
  window.render = (id) =>
    root.render(React.createElement(React.StrictMode, null, React.createElement(Task, { id })));
  window.unmount = () => root.unmount();
}"""


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    async with scripted() as server:
        yield server


@pytest.fixture
async def app(context: BrowserContext, server: Scripted, tools: Path) -> Page:
    page = await context.new_page()
    html = f'<!doctype html><body><script type="importmap">{json.dumps(IMPORTS)}</script>'
    await page.route("**/app", lambda route: route.fulfill(body=html, content_type="text/html"))
    await page.goto(f"{server.url}app")
    for name in ("react", "react-dom"):
        await page.add_script_tag(path=tools / f"node_modules/{name}/umd/{name}.development.js")
    await page.evaluate(APP)
    return page


async def test_the_hook_in_react(app: Page, server: Scripted, seen: Seen) -> None:
    async def events(request: Request) -> None:
        if request.query["taskId"] == "t":
            await request.stream(SYNC, change(1, "pending"), change(2), hold=True)
        elif request.query["taskId"] == "gone":
            await request.problem(404, "task_not_found")
        else:
            await request.stream(SYNC, change(7, "completed").replace('"t"', '"other"'))

    async def status(request: Request) -> None:
        gone = request.query["taskId"] == "gone"
        await (request.problem(404, "task_not_found") if gone else request.json(task(2)))

    server.handlers.update(events=events, status=status)
    output = app.locator("output")
    await app.evaluate("render(null)")
    await app.wait_for_function("document.querySelector('output')?.textContent === '- - - - -'")
    assert server.asked == []
    await app.evaluate("render('t')")
    await app.wait_for_function("document.querySelector('output').textContent === 't 2 processing live -'")
    streams = len(server.to("events"))
    await app.evaluate("render('t')")
    await app.evaluate("render('other')")
    await app.wait_for_function("document.querySelector('output').textContent === 'other 7 completed ended -'")
    assert "other 2 processing live -" not in await app.evaluate("seen"), "never what was another task's"
    assert len([r for r in server.to("events") if r.query["taskId"] == "t"]) == streams, "a render opens nothing"
    await app.evaluate("render('gone')")
    await app.wait_for_function("document.querySelector('output').textContent === 'gone - - failed task_not_found'")
    assert all(request.headers["authorization"] == "Bearer mine" for request in server.asked)
    await app.evaluate("render('t')")
    await app.wait_for_function("document.querySelector('output').textContent.startsWith('t 2')")
    await app.evaluate("unmount()")
    await output.wait_for(state="detached")
    asked = len(server.asked)
    await app.evaluate("window.dispatchEvent(new Event('online'))")
    await app.wait_for_timeout(300)
    assert len(server.asked) == asked, "unmounted, it follows nothing"
    assert [error for error in seen.errors if "404" not in error and "React DevTools" not in error] == []
