"""The figures of a run for people, and how to repeat it. Pure."""

from collections.abc import Iterator, Sequence

from server.bench.figures import Figures, Push

WIDTH = 46
LOADS = {
    "w1": "a channel for each stream",
    "w2": "one channel for all, one event at a time",
    "w2_coalesced": "one channel for all, coalesced",
}


def table(figures: Figures, command: str) -> str:
    return "\n".join(
        [*_pushes(figures), *_streams(figures), *_tasks(figures), *_asking(figures), *_run(figures, command)]
    )


def loads(figures: Figures) -> list[tuple[str, Push]]:
    """What was measured of pushing, by what it is."""
    pushes = figures.push
    measured = (("w1", pushes.w1), ("w2", pushes.w2), ("w2_coalesced", pushes.w2_coalesced))
    return [(LOADS[name], push) for name, push in measured if push is not None]


def _pushes(figures: Figures) -> Iterator[str]:
    for title, push in loads(figures):
        yield f"{push.streams} streams, {title}: µs of the server's processor an event delivered"
        spread = f"{min(push.rounds_us):.1f} to {max(push.rounds_us):.1f}"
        own = _latency(push.p50_ms, push.p99_ms)
        yield _row("  taskbeam", f"{push.us_per_event:8.2f}   {'':>11}   {own}  ({spread}; lost {push.lost})")
        for name, peer in push.peers.items():
            latency = peer.latency
            times = _latency(latency.p50_ms, latency.p99_ms) if latency is not None else ""
            known = f"  {name} {peer.version}".rstrip()
            yield _row(known, f"{peer.us_per_event:8.2f}   {f'ours {_ratio(peer.ratio)}x':>11}   {times}")
        yield ""


def _streams(figures: Figures) -> Iterator[str]:
    if (idle := figures.idle) is not None:
        yield _row("memory of the web process, an idle SSE stream", f"{idle.sse_bytes / 1000:.1f} kB")
        yield _row("memory of the web process, a WebSocket", f"{idle.ws_bytes / 1000:.1f} kB")
        yield _row("processor, an idle SSE stream", f"{idle.sse_us_per_second:.1f} µs a second")
    if (join := figures.join) is not None:
        yield _row("processor, a stream opened", f"{join.us:.0f} µs")
    if (storm := figures.reconnect) is not None:
        yield _row(f"{storm.streams} streams cut, and back", f"{storm.seconds:.2f} s, {storm.queries} statements")


def _tasks(figures: Figures) -> Iterator[str]:
    if (calls := figures.callbacks) is not None:
        each = f"{calls.us:.0f} µs of the web process each"
        yield _row("signed callbacks at saturation", f"{calls.per_second:.0f} a second, {each}")
        yield _row(
            f"  of {calls.sent} applied",
            f"{calls.committed} committed, {calls.ledgered} in the ledger, {calls.published} published,"
            f" {calls.delivered} delivered; lost {calls.lost}",
        )
    if (end := figures.end_to_end) is not None:
        yield _row(
            "callback sent → client's socket",
            f"p50 {end.p50_ms:.1f} ms, p99 {end.p99_ms:.1f} ms, p99.9 {end.p999_ms:.1f} ms"
            f" ({end.callbacks} at {end.per_second:g}/s, {end.streams} streams; lost {end.lost})",
        )


def _asking(figures: Figures) -> Iterator[str]:
    if (polling := figures.polling) is not None:
        yield _row(
            f"peer: {polling.clients} clients that ask once a second",
            f"{polling.us_per_client_second:.0f} µs a client and second; the end is seen p50 {polling.p50_ms:.0f} ms,"
            f" p99 {polling.p99_ms:.0f} ms late",
        )
    if (rights := figures.rights) is not None:
        bare, caller = rights.read_bare.p50_ms, rights.read_as_caller.p50_ms
        yield _row("a read as its caller", f"p50 {caller:.2f} ms, {_ratio(caller / bare)} times the same as the server")
        yield _row(f"{rights.users} users join at once, in Postgres", f"{rights.joins_ms / 1000:.2f} s")
        yield _row("an access token, new and known", f"{rights.token_first_us:.0f} µs, {rights.token_again_us:.1f} µs")


def _run(figures: Figures, command: str) -> Iterator[str]:
    if (kept := figures.durability) is not None:
        yield _row("Postgres", f"fsync {kept.fsync}, synchronous_commit {kept.synchronous_commit}")
    if (noise := figures.noise) is not None and noise.noisy:
        yield (
            f"NOISY: others took {noise.others_share:.0%} of this machine, {noise.steal_share:.0%} was stolen, and a"
            f" fixed loop's time moved by {noise.drift_share:.0%}: repeat this when it is quiet"
        )
    yield f"repeat: {command}"


def _row(name: str, value: str) -> str:
    return f"{name:<{WIDTH}}{value}"


def _latency(p50: float | None, p99: float | None) -> str:
    return "" if p50 is None or p99 is None else f"p50 {p50:.2f} ms  p99 {p99:.2f} ms"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def command(words: Sequence[str]) -> str:
    return " ".join(["./run", "bench", *words])
