"""The dispatcher's engine: claims due messages, delivers them, records what came of it, recovers what was lost.

Any number of engines work on one database. A claim counts the delivery and takes a lease, renewed every few
seconds; when its holder dies the lease runs out and another one takes over. A finish carries the fence of its
claim, so that a holder that was slow, not dead, changes nothing afterwards.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import structlog

from server import failpoints
from server.db import DATABASE_ERRORS
from server.dispatch import retry
from server.dispatch.delivery import Answer, Sender
from server.dispatch.messages import Claimed, Messages

log = structlog.get_logger()

POLL_SECONDS = 1.0
RENEW_SECONDS = 3.0
REAP_SECONDS = 2.0
CLEAN_SECONDS = 60.0
GRACE_SECONDS = 1.5
FINISH_TRIES = 5
LOST = Answer(0, body=b"the dispatcher ended while it was delivering")

OnClaim: TypeAlias = Callable[[Sequence[Claimed]], Awaitable[None]]


class Engine:
    """`run()` until cancelled or `stop()`; `poke()` when something was published."""

    def __init__(self, messages: Messages, sender: Sender, parallelism: int, on_claim: OnClaim | None = None) -> None:
        self._messages = messages
        self._sender = sender
        self._parallelism = parallelism
        self._on_claim = on_claim
        self._held: dict[str, tuple[Claimed, asyncio.Task[None]]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._poked = asyncio.Event()
        self._stopping = False

    @property
    def busy(self) -> int:
        """Deliveries under way."""
        return len(self._held)

    def poke(self) -> None:
        self._poked.set()

    def stop(self) -> None:
        """Claim nothing more."""
        self._stopping = True
        self._poked.set()

    async def run(self) -> None:
        loops = [
            asyncio.create_task(self._every(RENEW_SECONDS, self._renew)),
            asyncio.create_task(self._every(REAP_SECONDS, self._reap)),
            asyncio.create_task(self._every(CLEAN_SECONDS, self._messages.clean_up)),
        ]
        try:
            await self._claim_for_ever()
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)

    async def close(self) -> None:
        """Let deliveries end for a moment, then hand back the rest, due at once and not counted."""
        self.stop()
        if self._held:
            await asyncio.wait([task for _, task in self._held.values()], timeout=GRACE_SECONDS)
        rest = list(self._held.values())
        for _, task in rest:
            task.cancel()
        await asyncio.gather(*(task for _, task in rest), *self._background, return_exceptions=True)
        if rest:
            await self._messages.hand_back([message for message, _ in rest])
            log.info("handed_back", count=len(rest))

    async def _claim_for_ever(self) -> None:
        failing = False
        while not self._stopping:
            self._poked.clear()
            free = self._parallelism - len(self._held)
            claimed: list[Claimed] = []
            try:
                if free > 0:
                    claimed = await self._messages.claim(free)
                failing = False
            except DATABASE_ERRORS as error:
                if not failing:
                    log.warning("claim_failed", reason=type(error).__name__)
                failing = True
            if claimed:
                failpoints.reached("dispatcher.claimed")
                self._begin(claimed)
            if len(claimed) < free or free <= 0:
                try:
                    await asyncio.wait_for(self._poked.wait(), POLL_SECONDS)
                except TimeoutError:
                    continue

    def _begin(self, claimed: list[Claimed]) -> None:
        for message in claimed:
            task = asyncio.create_task(self._deliver(message))
            self._held[message.id] = (message, task)
            task.add_done_callback(lambda _, message=message: self._end(message))  # type: ignore[misc]
        if self._on_claim is not None:
            noting = asyncio.ensure_future(self._on_claim(claimed))
            self._background.add(noting)
            noting.add_done_callback(self._background.discard)

    def _end(self, message: Claimed) -> None:
        held = self._held.get(message.id)
        if held is not None and held[0].fence == message.fence:
            del self._held[message.id]
        self._poked.set()

    async def _deliver(self, message: Claimed) -> None:
        answer = await self._sender.send(message.parcel)
        failpoints.reached("dispatcher.delivered")
        await self._finish(message, answer)

    async def _finish(self, message: Claimed, answer: Answer) -> None:
        """Record it, through a short absence of Postgres; the lease is renewed meanwhile or runs out."""
        for attempt in range(FINISH_TRIES):
            try:
                await self._record(message, answer)
                return
            except DATABASE_ERRORS as error:
                log.warning("finish_failed", message_id=message.id, reason=type(error).__name__)
                await asyncio.sleep(0.2 * 2**attempt)

    async def _record(self, message: Claimed, answer: Answer) -> None:
        outcome = "delivered"
        if answer.delivered:
            held = await self._messages.delivered(message, answer)
        elif message.exhausted or answer.refused:
            outcome = "failed"
            held = await self._messages.failed(message, answer)
        else:
            outcome = "retry"
            seconds = self._pause(message, answer)
            held = await self._messages.retry_later(message, answer, seconds)
            asyncio.get_running_loop().call_later(seconds, self.poke)
        log.info(
            "delivery",
            message_id=message.id,
            kind=message.kind,
            outcome=outcome if held else "fenced_off",
            status=answer.status,
            delivery=message.deliveries,
        )

    @staticmethod
    def _pause(message: Claimed, answer: Answer) -> float:
        asked = retry.asked_seconds(answer.low(), now=time.time())
        if asked is not None:
            return asked
        if message.retry_delay is not None:
            return retry.parse_delay(message.retry_delay)(message.deliveries - 1) / 1000
        return retry.backoff_seconds(message.deliveries)

    async def _renew(self) -> None:
        held = [message for message, _ in self._held.values()]
        if not held:
            return
        mine = await self._messages.renew(held)
        for message in held:
            entry = self._held.get(message.id)
            if message.id not in mine and entry is not None and entry[0].fence == message.fence:
                entry[1].cancel()  # canceled, or taken over: nobody waits for this delivery
                log.info("delivery_dropped", message_id=message.id)

    async def _reap(self) -> None:
        for message in await self._messages.expired():
            log.warning("lease_expired", message_id=message.id, delivery=message.deliveries)
            if message.exhausted:
                await self._messages.failed(message, LOST)
            else:
                await self._messages.retry_later(message, LOST, 0)
            self.poke()

    async def _every(self, seconds: float, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await step()
            except DATABASE_ERRORS as error:
                log.warning("step_failed", step=step.__name__, reason=type(error).__name__)
            await asyncio.sleep(seconds)
