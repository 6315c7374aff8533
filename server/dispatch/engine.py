"""The dispatcher's engine: claims due messages, delivers them, records what came of it, recovers what was lost.

Any number of engines work on one database. A claim counts the delivery and takes a lease, renewed every second or
two; when its holder dies the lease runs out and another one takes over. A finish carries the fence of its claim,
so that a holder that was slow, not dead, changes nothing afterwards.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import structlog

from server import failpoints
from server.clock import Clock
from server.db import DATABASE_ERRORS
from server.dispatch import retry
from server.dispatch.delivery import Answer, Sender
from server.dispatch.messages import LEASE_SECONDS, Claimed, Messages
from server.dispatch.metrics import DispatcherMetrics, Lane

log = structlog.get_logger()

POLL_SECONDS = 1.0
RENEW_SECONDS = 1.5
RENEW_AGAIN_SECONDS = 0.25
REAP_SECONDS = 1.0
CLEAN_SECONDS = 60.0
# A retry further off than this is found by the poll: no timer for each is kept.
TIMER_SECONDS_MAX = 60.0
# After an absence of Postgres, until the others are taken for dead: they have to connect anew, all at once.
RECOVERY_SECONDS = 2 * LEASE_SECONDS
GRACE_SECONDS = 0.8
CLOSE_SECONDS_MAX = 4.0
FINISH_SECONDS_MAX = 60.0
FINISH_PAUSE_SECONDS_MAX = 2.0
LOST = Answer(0, body=b"the dispatcher ended while it was delivering", ours=True)

OnClaim: TypeAlias = Callable[[Sequence[Claimed]], Awaitable[None]]


class Engine:
    """`run()` until cancelled, after `close()`; `published()` when a message was stored, `poke()` where one may be due.

    `parallelism` holds for messages, and once more for callbacks. `announce` tells the other engines of new messages.
    """

    def __init__(
        self,
        messages: Messages,
        sender: Sender,
        parallelism: int,
        metrics: DispatcherMetrics,
        announce: Callable[[], None],
        on_claim: OnClaim | None = None,
    ) -> None:
        self._messages = messages
        self._announce = announce
        self._metrics = metrics
        self._sender = sender
        self._parallelism = parallelism
        self._on_claim = on_claim
        self._held: dict[tuple[str, int], tuple[Claimed, asyncio.Task[None]]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._poked = asyncio.Event()
        self._claiming = asyncio.Lock()
        self._stopping = False
        self._cut_off_at = -RECOVERY_SECONDS
        self._clock = Clock()

    def poke(self) -> None:
        self._poked.set()

    def published(self) -> None:
        self._poked.set()
        self._announce()

    async def run(self) -> None:
        """Raises what is no mere absence of the database: a defect must not stay unseen."""
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._claim_for_ever())
            loops.create_task(self._every(RENEW_SECONDS, self._renew, RENEW_AGAIN_SECONDS))
            loops.create_task(self._every(REAP_SECONDS, self._reap, REAP_SECONDS))
            loops.create_task(self._every(CLEAN_SECONDS, self._messages.clean_up, CLEAN_SECONDS))

    async def close(self) -> None:
        """Claim nothing more, let deliveries end for a moment, hand back the rest: due at once and not counted."""
        self._stopping = True
        self._poked.set()
        try:
            async with asyncio.timeout(CLOSE_SECONDS_MAX):
                async with self._claiming:  # a claim that is under way gives messages to hold
                    rest = list(self._held.values())
                if rest:
                    await asyncio.wait([task for _, task in rest], timeout=GRACE_SECONDS)
                rest = list(self._held.values())
                for _, task in rest:
                    task.cancel()
                await asyncio.gather(*(task for _, task in rest), *self._background, return_exceptions=True)
                if rest:
                    await self._messages.hand_back([message for message, _ in rest])
                    log.info("handed_back", count=len(rest))
        except DATABASE_ERRORS as error:
            log.warning("not_handed_back", reason=type(error).__name__)  # the leases run out instead

    async def _claim_for_ever(self) -> None:
        failing = False
        while not self._stopping:
            self._poked.clear()
            async with self._claiming:
                if self._stopping:
                    return
                try:
                    await self._claim()
                    failing = False
                except DATABASE_ERRORS as error:
                    self._cut_off_at = time.monotonic()  # whoever holds nothing learns only here that it lasts
                    if not failing:
                        log.warning("claim_failed", reason=type(error).__name__)
                    failing = True
            # Now every lane is full or nothing is due in it: a delivery that ends, a publisher or a timer pokes.
            try:
                async with asyncio.timeout(POLL_SECONDS):
                    await self._poked.wait()
            except TimeoutError:
                continue

    async def _claim(self) -> None:
        callbacks = sum(message.is_callback for message, _ in self._held.values())
        free = self._parallelism - (len(self._held) - callbacks)
        free_for_callbacks = self._parallelism - callbacks
        if free <= 0 and free_for_callbacks <= 0:
            return
        claimed = await self._messages.claim(max(0, free), max(0, free_for_callbacks))
        if claimed:
            failpoints.reached("dispatcher.claimed")
            self._begin(claimed)

    def _begin(self, claimed: list[Claimed]) -> None:
        for message in claimed:
            task = asyncio.create_task(self._deliver(message))
            self._held[message.id, message.fence] = (message, task)
            self._lane(message).under_way.inc()
            task.add_done_callback(lambda done, message=message: self._end(message, done))  # type: ignore[misc]  # the default is inferred
        if self._on_claim is not None:
            noting = asyncio.ensure_future(self._on_claim(claimed))
            self._background.add(noting)
            noting.add_done_callback(self._background.discard)

    def _end(self, message: Claimed, done: "asyncio.Task[None]") -> None:
        del self._held[message.id, message.fence]
        self._lane(message).under_way.dec()
        if not done.cancelled() and done.exception() is not None:
            self._lane(message).ended["unrecorded"].inc()
            log.error("delivery_broke", **_about(message), exc_info=done.exception())
        self._poked.set()

    def _lane(self, message: Claimed) -> Lane:
        return self._metrics.callbacks if message.is_callback else self._metrics.messages

    async def _deliver(self, message: Claimed) -> None:
        structlog.contextvars.bind_contextvars(**_about(message))  # of this delivery's own asyncio task
        began = time.monotonic()
        answer = await self._sender.send(message.parcel)
        self._lane(message).seconds.observe(time.monotonic() - began)
        failpoints.reached("dispatcher.delivered")
        await self._finish(message, answer)

    async def _finish(self, message: Claimed, answer: Answer) -> None:
        """Record it, through an absence of Postgres; what cannot be recorded at all is left to its lease."""
        began, pause = time.monotonic(), 0.1
        while True:
            try:
                return await self._record(message, answer)
            except DATABASE_ERRORS as error:
                log.warning("finish_failed", reason=type(error).__name__)
            if time.monotonic() - began > FINISH_SECONDS_MAX:
                self._lane(message).ended["unrecorded"].inc()
                return None
            await asyncio.sleep(pause)
            pause = min(FINISH_PAUSE_SECONDS_MAX, pause * 2)

    async def _record(self, message: Claimed, answer: Answer) -> None:
        outcome = "delivered"
        if answer.delivered:
            held = await self._messages.delivered(message, answer)
        elif message.exhausted or answer.refused:
            outcome = "refused" if answer.refused else "failed"
            held = await self._messages.failed(message, answer)
        else:
            outcome = "retried"
            seconds = self._pause(message, answer)
            held = await self._messages.retry_later(message, answer, seconds)
            if seconds <= TIMER_SECONDS_MAX:
                asyncio.get_running_loop().call_later(seconds, self.poke)
        failpoints.reached("dispatcher.recorded")
        if message.callback is not None or message.failure_callback is not None:
            self.published()
        # A callback that is given up is lost news of a task: it must be seen.
        say = log.warning if outcome in ("failed", "refused") else log.info
        outcome = outcome if held else "fenced_off"
        self._lane(message).ended[outcome].inc()
        say(
            "delivery",
            kind=message.kind,
            outcome=outcome,
            status=answer.status,
            delivery=message.deliveries,
            **({"reason": answer.body[:200].decode("utf-8", "replace")} if answer.ours else {}),
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
            entry = self._held.get((message.id, message.fence))
            if message.id not in mine and entry is not None:
                entry[1].cancel()  # canceled, or taken over: nobody waits for this delivery
                self._lane(message).ended["dropped"].inc()
                log.info("delivery_dropped", **_about(message))

    async def _reap(self) -> None:
        if self._clock.step():
            self._cut_off_at = time.monotonic()  # every lease looks run out, or none does: who lives renews his first
        if time.monotonic() - self._cut_off_at < RECOVERY_SECONDS:
            return  # the others were cut off as well: they live, and renew what they hold first
        for message in await self._messages.expired():
            log.warning("lease_expired", **_about(message), delivery=message.deliveries)
            self._metrics.leases_taken_over.inc()
            if message.exhausted:
                held, outcome = await self._messages.failed(message, LOST), "failed"
            else:
                held, outcome = await self._messages.retry_later(message, LOST, 0), "retried"
            if held:
                self._lane(message).ended[outcome].inc()
            self.published()

    async def _every(self, seconds: float, step: Callable[[], Awaitable[None]], again_seconds: float) -> None:
        failing = False
        while True:
            pause = seconds
            try:
                await step()
                failing = False
            except DATABASE_ERRORS as error:
                self._cut_off_at = time.monotonic()
                if not failing:
                    log.warning("step_failed", step=step.__name__, reason=type(error).__name__)
                failing, pause = True, again_seconds
            await asyncio.sleep(pause)


def _about(message: Claimed) -> dict[str, str | int]:
    """What every line about a message says: which it is, and of which run."""
    about: dict[str, str | int] = {"message_id": message.id}
    if message.subject is not None:
        about["task_id"], about["attempt"] = message.subject
    return about
