"""Tickets in Postgres: what is kept of one, whose it is, how often it is good, and how many there can be."""

import asyncio
import hashlib
import time
from pathlib import Path

import pytest

from server.auth import Caller
from server.db import Pool
from server.errors import InvalidTicket, TaskNotFound
from server.metrics import Metrics
from server.retention import Retention
from server.tasks.store import TaskStore
from server.tasks.tickets import LIFETIME_SECONDS, Tickets, draft
from tests.conftest import Connection
from tests.tasks.conftest import User, new_task_id

ROWS = "select count(*) from taskbeam.tickets"


def caller(user: User, expires_at: float | None = None) -> Caller:
    return Caller(user.id, user.claims, expires_at, operator=True)


@pytest.fixture
def tickets(pool: Pool) -> Tickets:
    return Tickets(pool, Metrics())


async def new_task(store: TaskStore, user: User) -> str:
    return (await store.create(user.claims, user.id, "a boat", b"{}")).task_id


async def test_a_ticket_brings_back_who_it_was_for_once(
    tickets: Tickets, store: TaskStore, owner: Connection, user: User
) -> None:
    one, other, third = [await new_task(store, user) for _ in range(3)]
    ends = time.time() + 3_000
    text, expires_at = await tickets.issue(caller(user, ends), [one, other])
    assert 58 < expires_at.timestamp() - time.time() < 61
    row = await owner.fetchrow("select * from taskbeam.tickets")
    assert row is not None
    assert row["digest"] == hashlib.sha256(text.encode()).digest()
    assert text not in str(dict(row))
    looked = await tickets.look(text, [other])
    with pytest.raises(InvalidTicket):
        await tickets.spend(text, [one, third])
    spent = await tickets.spend(text, [one])
    # All that the token said, but never an operator's rights: a ticket is for streams.
    assert looked == spent == Caller(user.id, user.claims, ends, operator=False, task_ids=frozenset((one, other)))
    for again in (tickets.spend, tickets.look):
        with pytest.raises(InvalidTicket):
            await again(text, [one])
    assert await owner.fetchval(ROWS) == 0


async def test_of_fifty_at_once_one_succeeds(tickets: Tickets, user: User) -> None:
    text, _ = await tickets.issue(caller(user), None)
    spent = await asyncio.gather(*(tickets.spend(text, []) for _ in range(50)), return_exceptions=True)
    assert [who for who in spent if isinstance(who, Caller)] == [Caller(user.id, user.claims)]
    assert sum(isinstance(who, InvalidTicket) for who in spent) == 49


async def test_a_ticket_is_for_tasks_of_ones_own(
    tickets: Tickets, store: TaskStore, owner: Connection, user: User
) -> None:
    mine, theirs = await new_task(store, user), await new_task(store, User())
    for wanted in ([theirs], [mine, theirs], [mine, new_task_id()]):
        with pytest.raises(TaskNotFound):
            await tickets.issue(caller(user), wanted)
    assert await owner.fetchval(ROWS) == 0
    await tickets.issue(caller(user), [mine])


async def test_it_expires_and_is_cleared_away(tickets: Tickets, pool: Pool, owner: Connection, user: User) -> None:
    old, _ = await tickets.issue(caller(user), None)
    await owner.execute("update taskbeam.tickets set expires_at = now() - interval '1 ms'")
    new, _ = await tickets.issue(caller(user), None)
    for show in (tickets.look, tickets.spend):
        with pytest.raises(InvalidTicket):
            await show(old, [])
    assert await owner.fetchval(ROWS) == 2
    await Retention(pool, Path(), Metrics(), tasks_days=None, events_days=None).turn()
    assert await owner.fetchval(ROWS) == 1
    await tickets.spend(new, [])


async def test_a_user_has_so_many_unspent_ones_and_no_more(
    tickets: Tickets, owner: Connection, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.tasks.tickets.UNSPENT_MAX", 3)
    others, _ = await tickets.issue(caller(User()), None)
    mine = [(await tickets.issue(caller(user), None))[0] for _ in range(5)]
    assert await owner.fetchval(ROWS) == 4
    for gone in mine[:2]:
        with pytest.raises(InvalidTicket):
            await tickets.spend(gone, [])
    for text in (*mine[2:], others):
        await tickets.spend(text, [])


async def test_with_a_new_task_it_is_kept_in_its_transaction(
    tickets: Tickets, store: TaskStore, owner: Connection, user: User
) -> None:
    ticket = draft(caller(user))
    change = await store.create(user.claims, user.id, "a boat", b"{}", None, ticket)
    assert await owner.fetchval("select count(*) from taskbeam.dispatches") == 1
    spent = await tickets.spend(ticket.text, [])
    assert spent.task_ids == frozenset([change.task_id])
    await store.create(user.claims, user.id, "a boat", b"{}")
    assert await owner.fetchval(ROWS) == 0, "none that was not asked for"


@pytest.mark.pure
def test_it_does_not_outlive_the_access_token() -> None:
    user = User()
    assert draft(caller(user)).lifetime_seconds == LIFETIME_SECONDS
    assert draft(caller(user, time.time() + 900)).lifetime_seconds == LIFETIME_SECONDS
    assert 9 < draft(caller(user, time.time() + 10)).lifetime_seconds <= 10
    assert draft(caller(user, time.time() - 10)).lifetime_seconds == 1
    assert len({draft(caller(user)).text for _ in range(100)}) == 100


@pytest.mark.parametrize("text", ["", "x", "x" * 42, "x" * 44, "x" * 42 + "\0", "é" * 43, "x" * 42 + "\n"])
async def test_what_is_no_ticket_is_not_looked_for(tickets: Tickets, text: str) -> None:
    with pytest.raises(InvalidTicket):
        await tickets.spend(text, [])
    with pytest.raises(InvalidTicket):
        await tickets.look(text, [])
