"""Who said something of a task, for the ledger public.task_deliveries: one row for each verified word of a run's end.

Mere progress is counted (metrics), not kept row by row. The rows are written by sql/011_together.sql, together with
the change that they tell of; here is what goes into them, and how their owner reads them.
"""

import datetime as dt
from typing import Literal, TypeAlias

import msgspec

from server.tasks.state import Outcome

Kind: TypeAlias = Literal["callback", "webhook", "report", "lookup"]

# Of a task. Beyond that only what ends a run is noted, and the first late result of each attempt.
DELIVERIES_NOTED_MAX = 100


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """A verified source. `jti`: its id, which counts once; `delivery`: None is the current; `status`: HTTP, 0: none."""

    kind: Kind
    jti: str | None = None
    delivery: int | None = None
    status: int | None = None


class LedgerEntry(msgspec.Struct, omit_defaults=True):
    """A row of the ledger, as its owner sees it; `status`: HTTP, of the generator's answer, 0: none came."""

    at: dt.datetime
    kind: Kind
    outcome: Outcome
    delivery: int
    status: int | None = None


class Deliveries(msgspec.Struct):
    """The ledger of a task, oldest first."""

    deliveries: list[LedgerEntry]
