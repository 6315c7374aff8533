"""What /healthz and /readyz answer. Pure."""

from typing import Literal, TypeAlias

import msgspec

State: TypeAlias = Literal["ready", "degraded", "unavailable"]
Postgres: TypeAlias = Literal["up", "down"]
Redis: TypeAlias = Literal["up", "down", "none"]
QStash: TypeAlias = Literal["unknown", "up", "down"]


class Liveness(msgspec.Struct):
    """The process answers."""

    status: Literal["ok"]


class Readiness(msgspec.Struct):
    """`degraded`: everything still arrives, later: without Redis by the tick; what QStash does not take is sent again.

    `none`: no Redis is used. `unknown`: no message was sent to QStash yet.
    """

    status: State
    postgres: Postgres
    redis: Redis
    qstash: QStash
