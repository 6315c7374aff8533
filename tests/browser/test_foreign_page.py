"""A page that knows nothing of us but the address of the stream, and never calls close()."""

import asyncio

import pytest
from playwright.async_api import BrowserContext, Response

from tests.browser.conftest import Seen
from tests.browser.test_page import create
from tests.deployment import Deployment

pytestmark = pytest.mark.browser

PAGE = """<!doctype html><script>
const seen = [];
const source = new EventSource('/api/generate/events?taskId=TASK');
for (const name of ['status', 'progress'])
  source.addEventListener(name, (event) => seen.push(JSON.parse(event.data)));
</script>"""
# The longest `retry:` a stream that ends well was given, and something for a slow machine.
RETRY_SECONDS_MAX = 2.0
MARGIN_SECONDS = 1.0


async def test_it_asks_once_more_after_the_end_and_then_never(
    deployment: Deployment, context: BrowserContext, seen: Seen
) -> None:
    task_id = await create(deployment)
    page = await context.new_page()
    closing: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

    def answered(response: Response) -> None:
        if response.status == 204 and not closing.done():
            closing.set_result(response)

    page.on("response", answered)
    html = PAGE.replace("TASK", task_id)
    await page.route("**/foreign", lambda route: route.fulfill(body=html, content_type="text/html"))
    await page.goto(f"{deployment.web.url}/foreign")
    async with asyncio.timeout(20):
        last = await closing
    assert "/api/generate/events" in last.url
    await asyncio.sleep(RETRY_SECONDS_MAX + MARGIN_SECONDS)
    assert len(seen.asked("/api/generate/events")) == 2
    assert await page.evaluate("source.readyState") == 2
    versions = await page.evaluate("seen.map((task) => task.version)")
    assert versions == sorted(set(versions))
    assert await page.evaluate("seen.at(-1).status") == "completed"
    assert await page.evaluate("seen.filter((task) => task.status === 'completed').length") == 1
