"""A picture that comes inside a callback or report: there when the task is, once, and gone when no task names it."""

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Connection, Deploy
from tests.dispatch.conftest import Home
from tests.dispatch.runs import GENERATOR, Run, begin, delivery, sign
from tests.receiver import Receiver

PNG = b"\x89PNG\r\n\x1a\n" + b"p" * 5_000
JPEG = b"\xff\xd8\xff\xe0" + b"j" * 5_000


def base(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
def folder_of(office: Home) -> Path:
    return office.deployment.folder / "results"


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*")} if folder.exists() else set()


async def stored(run: Run, folder: Path, data: bytes, content_type: str) -> str:
    """The name under which the run's picture lies, after a look at it as a browser sees it."""
    status, result, _ = await run.ended()
    assert (status, result is not None) == ("completed", True)
    assert result is not None
    async with httpx.AsyncClient(base_url=run.web, trust_env=False) as client:
        picture = await client.get(result)
    assert (picture.status_code, picture.content, picture.headers["content-type"]) == (200, data, content_type)
    name = result.removeprefix("/results/")
    assert len(name.partition(".")[0]) == 43
    assert name in files(folder)
    return name


@pytest.mark.parametrize(
    ("answer", "data", "content_type"),
    [
        (PNG, PNG, "image/png"),
        (JPEG, JPEG, "image/jpeg"),
        ({"created": 1, "data": [{"b64_json": base(PNG)}]}, PNG, "image/png"),
        ({"images": [base(JPEG)], "info": "{}"}, JPEG, "image/jpeg"),
        ({"result": f"data:image/webp;base64,{base(PNG)}"}, PNG, "image/png"),
    ],
)
async def test_in_an_answer(run: Run, folder_of: Path, answer: Any, data: bytes, content_type: str) -> None:
    before = files(folder_of)
    assert await run.outcome(delivery(200, answer)) == "applied"
    name = await stored(run, folder_of, data, content_type)
    assert files(folder_of) - before == {name}
    # QStash tells it again, in another envelope: the same end, the same file, nothing beside it.
    assert await run.outcome(delivery(200, answer, retried=1)) == "duplicate"
    assert files(folder_of) - before == {name}
    assert await run.events() == ["pending", "completed"]


async def test_the_very_same_callback_again(run: Run, folder_of: Path) -> None:
    body = delivery(200, PNG)
    signature = sign(run.callback_url, body)
    outcomes = await asyncio.gather(*(run.outcome(body, signature=signature) for _ in range(10)))
    assert sorted(outcomes) == ["applied"] + ["duplicate"] * 9
    assert await run.outcome(body, signature=signature) == "duplicate"
    await stored(run, folder_of, PNG, "image/png")


async def test_ten_pictures_at_once(run: Run, folder_of: Path) -> None:
    """One is the task's; what the others stored meanwhile is gone."""
    before = files(folder_of)
    outcomes = await asyncio.gather(*(run.outcome(delivery(200, PNG + bytes([n]))) for n in range(10)))
    assert sorted(outcomes) == ["applied"] + ["stale"] * 9
    _, result, _ = await run.ended()
    assert {f"/results/{name}" for name in files(folder_of) - before} == {result}


async def test_no_two_runs_share_a_name(run: Run, office: Home, provider: Receiver, tasks: Connection) -> None:
    other = await begin(office.deployment.web.url, provider, tasks)
    for each in (run, other):
        assert await each.outcome(delivery(200, PNG)) == "applied"
    assert (await run.ended())[1] != (await other.ended())[1]


async def test_too_late(run: Run, folder_of: Path) -> None:
    before = files(folder_of)
    await run.outcome(delivery(500, b"", retried=3))
    assert await run.outcome(delivery(200, PNG)) == "stale"
    assert (await run.report(status="completed", result=base(PNG))).json()["outcome"] == "stale"
    # Nor after another attempt has begun.
    await run.owner.execute("update public.image_generations set status = 'pending' where task_id = $1", run.task_id)
    assert await run.outcome(delivery(200, PNG)) == "stale"
    # The first one is kept, for a retry.
    (kept,) = files(folder_of) - before
    late = "select result from public.task_deliveries where task_id = $1 and result is not null"
    assert [row["result"] for row in await run.owner.fetch(late, run.task_id)] == [f"/results/{kept}"]


async def test_an_id_that_was_used_for_something_else(run: Run, folder_of: Path) -> None:
    before, jti = files(folder_of), "jti-of-this-test"
    busy, done = delivery(500, b"busy"), delivery(200, PNG)
    assert await run.outcome(busy, signature=sign(run.callback_url, busy, jti=jti)) == "applied"
    assert await run.outcome(done, signature=sign(run.callback_url, done, jti=jti)) == "duplicate"
    assert files(folder_of) == before
    assert (await run.row())["status"] == "processing"


async def test_a_task_that_is_gone(run: Run, folder_of: Path) -> None:
    before = files(folder_of)
    await run.owner.execute("delete from public.image_generations where task_id = $1", run.task_id)
    assert (await run.call(delivery(200, PNG))).status_code == 489
    assert files(folder_of) == before


async def test_what_is_no_picture_or_too_large(run: Run, folder_of: Path) -> None:
    before = files(folder_of)
    assert await run.outcome(delivery(200, {"result": "data:image/png;base64," + base(b"<svg/>")})) == "applied"
    row = await run.row()
    assert (row["error_code"], row["error"]) == (
        "bad_response",
        "The generator's picture is none: only png, jpeg and webp are taken",
    )
    assert files(folder_of) == before


async def test_as_the_end_of_a_report(run: Run, folder_of: Path) -> None:
    assert await run.outcome(delivery(202)) == "applied"
    large = PNG + bytes(10_000_000)
    for wrong in (
        "data:image/png;base64,%%%%",
        base(b"GIF89a" + bytes(99)),
        "data:image/png;base64," + base(b"x" * 99),
    ):
        answer = await run.report(status="completed", result=wrong)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_body")
    said = {"status": "completed", "result": f"data:image/png;base64,{base(large)}"}
    assert (await run.report(**said)).json() == {"ok": True, "outcome": "applied", "cancel": False}
    await stored(run, folder_of, large, "image/png")
    assert (await run.report(**said)).json()["outcome"] == "duplicate"


async def test_only_the_end_may_be_large(run: Run) -> None:
    padding = "x" * 70_000
    for said in (
        {"progress": 5, "padding": padding},
        {"status": "failed", "error": "x", "padding": padding},
        {"progress": "five", "padding": padding},
        {"status": "completed", "result": "data:image/png;base64," + "A" * 33 * 1024 * 1024},
    ):
        answer = await run.report(**said)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert await run.events() == ["pending"]


async def test_no_room_for_it(deploy: Deploy, owner: Connection) -> None:
    """QStash is told to come again, and when there is room it is taken."""
    async with Receiver() as provider:
        here = await deploy(
            dispatchers=0, generator=False, env={"QSTASH_URL": provider.origin, "GENERATOR_URL": GENERATOR}
        )
        run = await begin(here.web.url, provider, owner)
        (here.folder / "results").write_text("in the way")
        answer = await run.call(delivery(200, PNG))
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert await run.ended() == ("pending", None, None)
        (here.folder / "results").unlink()
        assert await run.outcome(delivery(200, PNG)) == "applied"
        await stored(run, here.folder / "results", PNG, "image/png")
    provider.listener.close()


async def test_killed_between_picture_and_commit(deploy: Deploy, owner: Connection) -> None:
    """The callback comes again and means the same file."""
    async with Receiver() as provider:
        here = await deploy(
            dispatchers=0, generator=False, env={"QSTASH_URL": provider.origin, "GENERATOR_URL": GENERATOR}
        )
        run = await begin(here.web.url, provider, owner)
        here.web.kill()
        await here.web.start(TASKBEAM_FAILPOINTS="picture.stored")
        with pytest.raises(httpx.HTTPError):
            await run.call(delivery(200, PNG))
        assert await asyncio.to_thread(here.web.wait) == 86
        (left,) = files(here.folder / "results")
        assert await run.ended() == ("pending", None, None)
        await here.web.start()
        assert await run.outcome(delivery(200, PNG)) == "applied"
        assert (
            {await stored(run, here.folder / "results", PNG, "image/png")} == files(here.folder / "results") == {left}
        )
    provider.listener.close()


async def test_a_key_that_an_api_repeats_is_not_shown(deploy: Deploy, owner: Connection) -> None:
    env = {"GENERATOR_URL": GENERATOR, "GENERATOR_HEADERS": json.dumps({"Authorization": "Bearer sk-hunter2"})}
    async with Receiver() as provider:
        here = await deploy(dispatchers=0, generator=False, env={"QSTASH_URL": provider.origin, **env})
        run = await begin(here.web.url, provider, owner)
        said = {"error": {"message": "Incorrect API key provided: sk-hunter2"}}
        assert await run.outcome(delivery(401, said, retried=3)) == "applied"
        assert (await run.ended())[2] == "The generator answered 401: Incorrect API key provided: ***"
        assert "sk-hunter2" not in here.web.log.read_text()
    provider.listener.close()
