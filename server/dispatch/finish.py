"""Ends a run with its result. A picture that came inside an answer is stored before the task is completed.

Its name follows from the run and the picture and cannot be guessed without our secret: the same answer, told again,
means the same file. What no task names in the end is taken away.
"""

import asyncio
import base64
import hashlib
import hmac
from pathlib import Path

from server import failpoints, results
from server.dispatch.picture import Picture
from server.tasks.ledger import Said
from server.tasks.state import Complete, Outcome
from server.tasks.store import NoSuchTask, TaskStore


class Finish:
    """`complete()` as the store has it, for results of both kinds."""

    def __init__(self, store: TaskStore, folder: Path, secret: bytes) -> None:
        self._store = store
        self._folder = folder
        self._secret = secret

    async def complete(self, task_id: str, attempt: int, result: str | Picture, said: Said) -> Outcome:
        """End the run, or keep its result where it comes too late for a task that has none.

        Raises NoSuchTask, and OSError when the picture cannot be stored."""
        if isinstance(result, str):
            return await self._store.complete(task_id, Complete(attempt=attempt, result=result), said)
        name = await asyncio.to_thread(self._name, task_id, attempt, result)
        path = results.PATH + name
        if await self._store.standing(task_id, attempt) == "over":
            # Nobody will ever want it: nothing to store, only to say so. A crash may have left it here before.
            try:
                return await self._store.complete(task_id, Complete(attempt=attempt, result=path), said)
            finally:
                if not await self._store.names(task_id, path):
                    await self._discard(name)
        await asyncio.to_thread(results.save, self._folder, name, result.data)
        failpoints.reached("picture.stored")
        try:
            outcome = await self._store.complete(task_id, Complete(attempt=attempt, result=path), said)
        except NoSuchTask:
            await self._discard(name)
            raise
        # After any other error nobody knows whether it was committed: the picture stays, and the call comes again.
        if outcome != "applied" and not await self._store.names(task_id, path):
            await self._discard(name)
        return outcome

    async def _discard(self, name: str) -> None:
        await asyncio.to_thread(results.discard, self._folder, name)

    def _name(self, task_id: str, attempt: int, picture: Picture) -> str:
        content = hashlib.sha256(picture.data).hexdigest()
        digest = hmac.digest(self._secret, f"result {task_id} {attempt} {content}".encode(), hashlib.sha256)
        return f"{base64.urlsafe_b64encode(digest).decode().rstrip('=')}.{picture.kind}"
