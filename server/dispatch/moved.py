"""What `up` does for the messages under way when it is started again, before its dispatcher is.

It follows a move: a URL is part of a message from the day it was published, and names addresses that `up` has chosen
anew. And what was held when everything ended is handed back.
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


async def hand_back(connection: Connection) -> None:
    """What was under way when everything ended is due again at once, and not counted: no lease has to run out.

    For the one who knows that no other dispatcher, and no web process, works on this database.
    """
    await connection.execute(
        """update dispatcher.messages set deliveries = deliveries - 1, leased_until = null, due_at = now(),
                  state = case when deliveries > 1 then 'retry' else 'created' end::dispatcher.message_state
            where state = 'active'"""
    )
    await connection.execute("update taskbeam.dispatches set leased_until = null where sent_at is null")
    await connection.execute(
        "update taskbeam.dispatches set lookup_leased_until = null where lookup_leased_until is not null"
    )
