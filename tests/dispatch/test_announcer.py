"""What is stored at one dispatcher is told to the others: after the commit, and of many messages at once."""

import asyncio

from qstash import AsyncQStash

from tests.conftest import Connection
from tests.dispatch.conftest import publish
from tests.receiver import Receiver, Reply, Request, until


async def test_others_are_told_of_a_message_and_of_its_callback(
    qstash: AsyncQStash, receiver: Receiver, messages: Connection
) -> None:
    notices: list[object] = []
    await messages.add_listener("dispatcher", lambda *_: notices.append(None))

    async def told(count: int) -> None:
        async def enough() -> bool:
            await messages.execute("select 1")  # notices come with the next answer
            return len(notices) >= count

        await until(enough, f"{count} notices", 3)

    async def job(_: Request) -> Reply:
        await told(1)
        return Reply()

    url, callback = receiver.on("/told", job), receiver.on("/told-callback", Reply())
    await publish(qstash, url=url, callback=callback)
    await receiver.wait("/told-callback")
    await told(2)


async def test_many_are_few_notices(qstash: AsyncQStash, receiver: Receiver, messages: Connection) -> None:
    notices: list[object] = []
    url = receiver.on("/many", Reply())
    await messages.add_listener("dispatcher", lambda *_: notices.append(None))
    await asyncio.gather(*(publish(qstash, url=url, body=str(n)) for n in range(40)))
    await receiver.wait("/many", 40)
    await messages.execute("select 1")
    assert 1 <= len(notices) <= 20
