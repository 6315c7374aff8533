"""What /healthz and /readyz answer. Pure."""

from typing import Literal, TypeAlias

import msgspec

State: TypeAlias = Literal["ready", "degraded", "unavailable"]
Postgres: TypeAlias = Literal["up", "down"]
Redis: TypeAlias = Literal["up", "down", "none"]


class Liveness(msgspec.Struct):
    """The process answers."""

    status: Literal["ok"]


class Readiness(msgspec.Struct):
    """`degraded`: without Redis everything still arrives, by the tick, a second later; `none`: no Redis is used."""

    status: State
    postgres: Postgres
    redis: Redis
