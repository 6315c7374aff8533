"""Chromium, and pages whose errors are kept. Each test has a browser of its own, with a profile of its own."""

import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Error, Page, Request, async_playwright

from tests.conftest import Deploy
from tests.deployment import Deployment

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT_MS_MAX = 20_000


@dataclass
class Seen:
    """What a context's pages said and asked for."""

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def asked(self, part: str) -> list[str]:
        return [url for url in self.requests if part in url]

    def console(self, message: ConsoleMessage) -> None:
        # Violations of the content security policy come as errors of the console as well.
        if message.type in ("error", "warning"):
            self.errors.append(f"{message.type}: {message.text}")

    def page(self, page: Page) -> None:
        page.on("pageerror", self._failed)

    def request(self, request: Request) -> None:
        self.requests.append(request.url)

    def _failed(self, error: Error) -> None:
        self.errors.append(f"exception: {error}")


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("NO CHROMIUM ON PATH: nothing of the browser's side is tested here")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        await browser.close()


@pytest.fixture
async def context(browser: Browser) -> BrowserContext:
    context = await browser.new_context(viewport={"width": 1280, "height": 860})
    context.set_default_timeout(WAIT_MS_MAX)
    return context


@pytest.fixture
async def seen(context: BrowserContext) -> Seen:
    seen = Seen()
    context.on("console", seen.console)
    context.on("page", seen.page)
    context.on("request", seen.request)
    return seen


@pytest.fixture
async def deployment(deploy: Deploy) -> Deployment:
    """Real processes, with a generator slow enough that something can happen meanwhile."""
    return await deploy(env={"GENERATOR_SECONDS": "2"})
