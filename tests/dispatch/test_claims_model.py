"""The dispatcher's messages against a model of them, whatever holders do and die of, in any order.

Never two holders, never a delivery too many, nothing that an old holder does counts, and no message is ever lost.
"""

import asyncio
from dataclasses import dataclass, field
from itertools import chain
from random import Random

from server.db import Pool
from server.dispatch.delivery import Answer
from server.dispatch.message import Draft
from server.dispatch.messages import Claimed, Messages
from tests.conftest import Connection

SCENARIOS = 8
STEPS = 40
FINAL = ("delivered", "failed", "canceled")


@dataclass
class Message:
    max_retries: int
    state: str = "created"
    deliveries: int = 0
    holder: Claimed | None = None
    run_out: bool = False
    claims: list[Claimed] = field(default_factory=list)


class Model:
    """Plays holders at random and says what must come of it."""

    def __init__(self, messages: Messages, owner: Connection, seed: int) -> None:
        self.messages = messages
        self.owner = owner
        self.rng = Random(seed)
        self.all: dict[str, Message] = {}

    async def step(self) -> None:
        await self.rng.choice(
            [self.publish, self.claim, self.claim, self.run_out, self.take_over, self.finish, self.finish, self.cancel]
        )()

    async def publish(self) -> None:
        max_retries = self.rng.randrange(3)
        message_id, twin = await self.messages.publish(Draft(url="https://example.com/", max_retries=max_retries), "")
        assert not twin
        self.all[message_id] = Message(max_retries)

    async def claim(self) -> None:
        """Two processes at the same moment."""
        due = {i for i, m in self.all.items() if m.state in ("created", "retry")}
        count = self.rng.randrange(1, 4)
        claimed = [*chain(*await asyncio.gather(*(self.messages.claim(count, 0) for _ in range(2))))]
        assert len({c.id for c in claimed}) == len(claimed) == min(len(due), 2 * count), "each once, and all there is"
        for one in claimed:
            message = self.all[one.id]
            assert one.id in due
            assert message.holder is None, "somebody else holds it"
            message.deliveries += 1
            assert one.deliveries == message.deliveries <= message.max_retries + 1
            message.state = "active"
            self._held(message, one)

    def _held(self, message: Message, claim: Claimed) -> None:
        assert all(claim.fence > older.fence for older in message.claims), "fences rise"
        message.claims.append(claim)
        message.holder, message.run_out = claim, False

    async def run_out(self) -> None:
        """The holder of some is dead, or too slow."""
        held = [i for i, m in self.all.items() if m.holder is not None and self.rng.random() < 0.5]
        await self.owner.execute("update dispatcher.messages set leased_until = now() where id = any ($1)", held)
        for message_id in held:
            self.all[message_id].run_out = True

    async def take_over(self) -> None:
        lost = {i for i, m in self.all.items() if m.run_out}
        found = [*chain(*await asyncio.gather(self.messages.expired(), self.messages.expired()))]
        assert sorted(c.id for c in found) == sorted(lost), "each once, and no delivery that goes on"
        for one in found:
            assert one.deliveries == self.all[one.id].deliveries, "taking over is no delivery"
            self._held(self.all[one.id], one)

    async def finish(self) -> None:
        """Anybody who ever held it says how it went."""
        claims = [(m, c) for m in self.all.values() for c in m.claims]
        if not claims:
            return
        message, claim = self.rng.choice(claims)
        counts = message.holder is claim
        answer = Answer(200)
        match self.rng.randrange(4):
            case 0:
                assert await self.messages.delivered(claim, answer) == counts
                after = "delivered"
            case 1 if not claim.exhausted and claim.deliveries <= message.max_retries:
                assert await self.messages.retry_later(claim, answer, 0) == counts
                after = "retry"
            case 2:
                await self.messages.hand_back([claim])
                after = "retry" if message.deliveries > 1 else "created"
                if counts:
                    message.deliveries -= 1
            case _:
                assert await self.messages.failed(claim, answer) == counts
                after = "failed"
        if counts:
            message.state, message.holder, message.run_out = after, None, False

    async def cancel(self) -> None:
        if not self.all:
            return
        message_id, message = self.rng.choice(list(self.all.items()))
        assert await self.messages.cancel(message_id) == (message.state not in FINAL)
        if message.state not in FINAL:
            message.state, message.holder, message.run_out = "canceled", None, False

    async def compare(self) -> None:
        rows = await self.owner.fetch(
            "select id, state::text, deliveries, leased_until is not null as held from dispatcher.messages"
        )
        assert {row["id"] for row in rows} == set(self.all), "a message is lost"
        for row in rows:
            message = self.all[row["id"]]
            assert (row["state"], row["deliveries"], row["held"]) == (
                message.state,
                message.deliveries,
                message.holder is not None,
            )

    async def drain(self) -> None:
        """All holders are dead; new ones do their work."""
        for message in self.all.values():
            if message.holder is not None:
                message.run_out = True
        await self.owner.execute("update dispatcher.messages set leased_until = now() where state = 'active'")
        await self.take_over()
        for _ in range(100):
            for message in self.all.values():
                if message.holder is not None:
                    assert await self.messages.delivered(message.holder, Answer(200))
                    message.state, message.holder, message.run_out = "delivered", None, False
            if all(message.state in FINAL for message in self.all.values()):
                return
            await self.claim()
        raise AssertionError("it never comes to an end")


async def test_whatever_holders_do(pool: Pool, owner: Connection) -> None:
    messages = Messages(pool, kept_days=1, dead_letters_kept_days=7)
    for seed in range(SCENARIOS):
        await owner.execute("delete from dispatcher.messages")
        model = Model(messages, owner, seed)
        for number in range(STEPS):
            try:
                await model.step()
                await model.compare()
            except AssertionError as error:
                raise AssertionError(f"scenario {seed}, step {number}: {error}") from error
        await model.drain()
        await model.compare()
