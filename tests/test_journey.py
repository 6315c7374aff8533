"""The path of a task, from prompt to picture, through real processes: read it beside the README's diagram."""

from pathlib import Path

from tests.conftest import Deploy
from tests.sse import changes, check_followed, stream


async def test_from_prompt_to_picture(deploy: Deploy) -> None:
    here = await deploy()
    async with here.client() as browser:
        # A browser asks for a picture and is answered at once.
        answer = await browser.post("/api/generate", json={"prompt": "a lighthouse in a storm"})
        assert answer.status_code == 202
        accepted = answer.json()
        task_id = accepted["taskId"]
        assert accepted["status"] == "pending"
        assert accepted["version"] == 1
        assert answer.headers["location"] == accepted["statusUrl"]

        # It follows the task: how it joined, then every change as it is made, then the end.
        async with stream(browser, f"taskId={task_id}") as events:
            told = [event async for event in events]
        assert told[0].retry is not None
        assert told[1].event == "sync" or told[0].event == "sync"
        seen = [event for event in told if event.is_change]
        check_followed(seen)
        assert len({e.data["progress"] for e in seen} - {None, 0, 100}) >= 1
        end = seen[-1].data
        assert (end["status"], end["progress"], end["error"]) == ("completed", 100, None)

        # The picture is there, under a name nobody can guess, for ever the same.
        picture = await browser.get(end["result"])
        assert picture.headers["content-type"] == "image/png"
        assert "immutable" in picture.headers["cache-control"]
        assert picture.content == next((Path(here.folder) / "results").iterdir()).read_bytes()

        # Polling says the same, and nothing when nothing is new.
        status = await browser.get("/api/generate/status", params={"taskId": task_id})
        assert {**status.json(), "pollAfterMs": None} == end
        again = await browser.get(
            "/api/generate/status", params={"taskId": task_id}, headers={"If-None-Match": status.headers["etag"]}
        )
        assert again.status_code == 304

        # Whoever saw the end has nothing more to hear; whoever saw half of it hears the rest.
        over = await browser.get("/api/generate/events", params={"taskId": task_id, "after": end["version"]})
        assert over.status_code == 204
        rest = await changes(browser, f"taskId={task_id}&after=1")
        check_followed(rest, after=1)
        assert rest[-1].data == end
