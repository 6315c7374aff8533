"""How soon after a fault was over a client saw a change that was committed after it. Pure."""

import bisect
from collections.abc import Iterable, Sequence

import msgspec

from server.clients.views import PUSHED, Change, Leg, Seen


class Heal(msgspec.Struct, frozen=True):
    """A fault was over at Unix seconds `at`; `web` is the one web process it was about, None for all."""

    kind: str
    at: float
    web: int | None = None


class Arrivals:
    """When each change was first seen, by web process; `note()` all of them, then `after()`."""

    def __init__(self, webs: int) -> None:
        self._first: list[dict[tuple[str, int], float]] = [{} for _ in range(webs)]
        # Of each change, when the client that had been there longest had joined and when it saw it.
        self._longest: dict[tuple[str, int], tuple[float, float]] = {}

    def note(self, leg: Leg, seen: Seen) -> None:
        """Only what was pushed counts: a poll is as late as its client asks."""
        if leg.transport in PUSHED:
            key = seen.task, seen.version
            first = self._first[leg.web]
            first[key] = min(seen.at, first.get(key, seen.at))
            self._longest[key] = min((leg.at, seen.at), self._longest.get(key, (leg.at, seen.at)))

    def after(self, heals: Iterable[Heal], changes: Sequence[Change]) -> dict[str, list[float]]:
        """Seconds from each heal to the first sight of a later change, by kind; without one it is left out."""
        ordered = sorted(changes, key=lambda change: change.at)
        committed = [change.at for change in ordered]
        sooner = [_suffix_minima(ordered, first) for first in self._first]
        found: dict[str, list[float]] = {}
        for heal in heals:
            place = bisect.bisect_right(committed, heal.at)
            webs = sooner if heal.web is None else [sooner[heal.web]]
            seen = min(minima[place] for minima in webs)
            if seen != float("inf"):
                found.setdefault(heal.kind, []).append(seen - heal.at)
        return found

    def lateness(self, changes: Iterable[Change]) -> list[float]:
        """Seconds from each change to a client that was connected when it was made, where there was one."""
        late = []
        for change in changes:
            joined, at = self._longest.get((change.task, change.version), (change.at, change.at))
            if joined < change.at:
                late.append(at - change.at)
        return late


def _suffix_minima(ordered: Sequence[Change], first: dict[tuple[str, int], float]) -> list[float]:
    """For each place, the earliest sight of any change from there on."""
    minima = [float("inf")] * (len(ordered) + 1)
    for place in range(len(ordered) - 1, -1, -1):
        change = ordered[place]
        minima[place] = min(minima[place + 1], first.get((change.task, change.version), float("inf")))
    return minima
