"""The figures of a run, as --json prints them. What was not measured is null. Pure."""

import msgspec

from server.bench.times import Times


class Durability(msgspec.Struct, frozen=True):
    """As the Postgres that was measured says."""

    fsync: str
    synchronous_commit: str


class Noise(msgspec.Struct, frozen=True):
    """How much of the machine others took, as shares of all its cores; `drift`: how far a fixed loop's time moved.

    `noisy`: one of them is above a tenth, so the figures are worth less.
    """

    others_share: float
    steal_share: float
    drift_share: float
    noisy: bool


class Peer(msgspec.Struct):
    """Another server in the same rounds. `ratio`: how many times its processor time ours is."""

    us_per_event: float
    ratio: float
    latency: Times | None
    version: str = ""


class Push(msgspec.Struct, kw_only=True):
    """One load. Processor time of the server by event delivered, in µs: the median of the rounds.

    `events_per_read`: how many a client found at a time; `*_ms`: published to read, at a fixed rate; `ratio`: ours
    to the floor, the median over rounds run side by side.
    """

    streams: int
    events: int
    us_per_event: float
    rounds_us: list[float]
    floor_us: float | None = None
    ratio: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    p999_ms: float | None = None
    events_per_read: float
    lost: int
    checked_streams: int
    peers: dict[str, Peer] = {}


class Pushes(msgspec.Struct):
    """w1: each stream follows a channel of its own. w2: all follow one; coalesced as the server is set by default."""

    w1: Push | None = None
    w2: Push | None = None
    w2_coalesced: Push | None = None


class Idle(msgspec.Struct):
    """Resident memory of the web process by open connection.

    `sse_us_per_second`: processor time of the process, heartbeats and all, while nothing happens, by stream.
    """

    sse_bytes: int
    ws_bytes: int
    sse_us_per_second: float


class Join(msgspec.Struct):
    """Processor time of the web process by stream opened, in µs."""

    us: float


class Callbacks(msgspec.Struct):
    """Signed callbacks at saturation. `us`: of the web process by callback, with what is pushed of it.

    `lost`: sent and answered, but not in the table, the ledger or Redis, or not read by the client.
    """

    sent: int
    per_second: float
    us: float
    committed: int
    ledgered: int
    published: int
    delivered: int
    lost: int


class EndToEnd(msgspec.Struct):
    """Callback sent to the client's socket. `per_second`: the rate asked for; `callbacks`: how many were sent."""

    streams: int
    per_second: float
    callbacks: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    lost: int


class Reconnect(msgspec.Struct):
    """All streams are cut at once. `queries`: statements that the web process had Postgres run until all were back."""

    streams: int
    seconds: float
    queries: int


class Rights(msgspec.Struct):
    """What row level security and access tokens cost."""

    read_bare: Times
    read_as_caller: Times
    users: int
    joins_ms: float
    token_first_us: float
    token_again_us: float


class Polling(msgspec.Struct):
    """What is replaced: clients that ask once a second."""

    clients: int
    us_per_client_second: float
    p50_ms: float
    p99_ms: float


class Figures(msgspec.Struct, kw_only=True):
    """All of a run."""

    push: Pushes = msgspec.field(default_factory=Pushes)
    idle: Idle | None = None
    join: Join | None = None
    callbacks: Callbacks | None = None
    end_to_end: EndToEnd | None = None
    reconnect: Reconnect | None = None
    rights: Rights | None = None
    polling: Polling | None = None
    durability: Durability | None = None
    noise: Noise | None = None
    machine: dict[str, str | int] = {}
    versions: dict[str, str] = {}

    @property
    def lost(self) -> int:
        """Over all parts; every one that is not zero is a defect."""
        parts = (self.push.w1, self.push.w2, self.push.w2_coalesced, self.callbacks, self.end_to_end)
        return sum(part.lost for part in parts if part is not None)
