"""What a delivery to the generator means for its task, whoever brings the word: a callback, or a look at the provider.

Only a 2xx or the last delivery ends a run. Whether the word may be believed was decided before.
"""

import asyncio
import base64
import binascii

from server import errors
from server.dispatch.finish import Finish
from server.dispatch.news import Broken, Delivery, Done, read_answer
from server.dispatch.result import find_reason
from server.generators import Generator
from server.tasks.ledger import Said
from server.tasks.state import Fail, Outcome, Report
from server.tasks.store import TaskStore

EXCERPT_CHARACTERS = 300
# A picture takes a while to decode, during which nobody else would be served.
LARGE_BYTES = 262_144


class Settle:
    """`settle()` applies a delivery to its task."""

    def __init__(self, store: TaskStore, finish: Finish) -> None:
        self._store = store
        self._finish = finish

    async def settle(self, generator: Generator, task_id: str, attempt: int, delivery: Delivery, said: Said) -> Outcome:
        """Raises NoSuchTask, InvalidBody where the answer is not in base64, and OSError as Finish does."""
        answer = _answer(delivery)
        if delivery.is_good:
            given = (generator, delivery.status, answer)
            large = len(answer) > LARGE_BYTES
            news = await asyncio.to_thread(read_answer, *given) if large else read_answer(*given)
            if isinstance(news, Done):
                return await self._finish.complete(task_id, attempt, news.result, said)
            if isinstance(news, Broken):
                broken = Fail(attempt=attempt, error=generator.without_secrets(news.error), error_code=news.code)
                return await self._store.fail(task_id, broken, said)
            # Accepted, not finished: the generator will report by itself.
            accepted = Report(attempt=attempt, delivery=delivery.retried + 1, progress=news.progress)
            return await self._store.report(task_id, accepted, said)
        if delivery.is_last:
            reason = generator.without_secrets(_reason(delivery.status, answer))
            change = Fail(attempt=attempt, error=reason, error_code=_code(delivery.status))
            return await self._store.fail(task_id, change, said)
        # Said of the delivery that failed, not of the next: that one may be well under way when this comes late.
        message = f"{_reason(delivery.status, b'')}; trying again"
        again = Report(attempt=attempt, delivery=delivery.retried + 1, message=message)
        return await self._store.report(task_id, again, said)


def _answer(delivery: Delivery) -> bytes:
    try:
        return base64.b64decode(delivery.body or "", validate=True)
    except (binascii.Error, ValueError) as error:
        raise errors.InvalidBody("body is not base64") from error


def _code(status: int) -> str:
    if status in (408, 504):
        return "timeout"
    return "generator_error" if status >= 100 else "unreachable"


def _reason(status: int, answer: bytes) -> str:
    if status < 100:
        return "The generator could not be reached"
    said = "".join(c for c in find_reason(answer)[:EXCERPT_CHARACTERS] if c.isprintable()).strip()
    return f"The generator answered {status}" + (f": {said}" if said else "")
