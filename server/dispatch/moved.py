"""Follows a move: the messages under way name addresses that `up` chose anew when it was started again.

A URL is part of a message from the day it was published, so what was accepted before a restart would be delivered
to a port that is gone.
"""

from typing import TypeAlias

import asyncpg
import msgspec

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


class Addresses(msgspec.Struct, frozen=True):
    """Where the web process and the built-in generator are reached, as http://host:port/; "" where it is not ours."""

    web: str
    generator: str


async def follow_move(connection: Connection, old: Addresses, new: Addresses) -> int:
    """Point the unfinished messages from the old addresses to the new ones; how many there are. Idempotent."""
    generator = (old.generator, new.generator) if old.generator and new.generator else ("", "")
    done = await connection.execute(
        """
        update dispatcher.messages set
          url = case kind when 'message' then replace(url, $1, $2) else replace(url, $3, $4) end,
          callback = replace(callback, $3, $4),
          failure_callback = replace(failure_callback, $3, $4),
          header = replace(header::text, $3, $4)::jsonb
        where state in ('created', 'active', 'retry')
        """,
        *generator,
        old.web,
        new.web,
    )
    return int(done.rpartition(" ")[2])
