"""What happens now and then: what is over is ended, what is forgotten is gone, and each step is bounded."""

from pathlib import Path

from server.clock import SETTLING_SECONDS
from server.db import Pool
from server.metrics import Metrics
from server.retention import Retention
from server.tasks.expiry import LOOKUPS_MAX
from server.tasks.pace import Pace
from server.tasks.reading import TaskReader
from server.tasks.store import TaskStore
from server.upkeep import Upkeep
from tests.clocks import Hands
from tests.conftest import Connection
from tests.tasks.conftest import User, expiry_on, store_on


async def test_a_turn(pool: Pool, owner: Connection, tmp_path: Path) -> None:
    store: TaskStore = store_on(pool, [])
    reader = TaskReader(pool, public_url="")
    pace, user = Pace(), User()
    retention = Retention(pool, tmp_path, Metrics(), tasks_days=30, events_days=7)
    upkeep = Upkeep(expiry_on(pool, store), reader, pace, retention, Metrics())
    overdue, done = [(await store.create(user.claims, user.id, "a boat", b"{}")).task_id for _ in range(2)]
    await owner.execute("update image_generations set deadline_at = now() - interval '1 s' where task_id = $1", overdue)
    await owner.execute("update taskbeam.dispatches set lookups = $1 where task_id = $2", LOOKUPS_MAX, overdue)
    await owner.execute("update image_generations set status = 'completed', result = '/r' where task_id = $1", done)
    await owner.execute("insert into taskbeam.callbacks_seen values ('old', now() - interval '11 minutes')")
    await upkeep._turn(0)
    assert await owner.fetchval("select status::text from image_generations where task_id = $1", overdue) == "failed"
    assert await owner.fetchval("select count(*) from taskbeam.callbacks_seen") == 0, "the retention had its turn"
    assert pace.typical_seconds is not None


async def test_nobody_is_late_right_after_a_step_of_the_clock(pool: Pool, owner: Connection, tmp_path: Path) -> None:
    store: TaskStore = store_on(pool, [])
    user = User()
    retention = Retention(pool, tmp_path, Metrics(), tasks_days=None, events_days=None)
    upkeep = Upkeep(expiry_on(pool, store), TaskReader(pool, public_url=""), Pace(), retention, Metrics())
    task_id = (await store.create(user.claims, user.id, "a boat", b"{}")).task_id
    await owner.execute("update taskbeam.dispatches set lookups = $1", LOOKUPS_MAX)
    hands = Hands()
    upkeep._clock = hands.clock()
    await owner.execute("update image_generations set deadline_at = now() - interval '45 m'")
    hands.go(0.1, 3_600)
    status = "select status::text from image_generations where task_id = $1"
    for turn in (0, 1):  # what is pending follows the step in a moment
        await upkeep._turn(turn)
        assert await owner.fetchval(status, task_id) == "pending"
    hands.go(SETTLING_SECONDS)
    await upkeep._turn(2)
    assert await owner.fetchval(status, task_id) == "failed"
