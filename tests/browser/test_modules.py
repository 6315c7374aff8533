"""The parts of the pages that touch no document, in node: what they hold, count, parse and say."""

import json
import shutil
import subprocess
from typing import Any

import pytest

from tests.browser.scripted import STATIC

SECONDS_MAX = 30


def node(script: str, **given: Any) -> Any:
    """What the script returns; `given` are its variables."""
    if shutil.which("node") is None:
        pytest.skip("NODE IS ABSENT: these modules are tested in pages only")
    names = f"const {{ {', '.join(given)} }} = {json.dumps(given)};" if given else ""
    whole = f"{names} console.log(JSON.stringify(await (async () => {{ {script} }})()));"
    argv = ["node", "--input-type=module", "--eval", whole]
    done = subprocess.run(argv, cwd=STATIC, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_board_holds_no_more_than_it_says() -> None:
    """Beyond the bound the oldest go, and none as old comes back, so that what is counted is what is held."""
    found = node(
        """
        const { Board, TASKS_MAX } = await import('./dashboard/board.js');
        const board = new Board();
        const begin = Date.now() - 60_000;
        const snapshot = (n, version, status) => ({
          taskId: `t${n}`, prompt: 'x'.repeat(32_000), status, version, attempt: 1, progress: null,
          createdAt: new Date(begin + n).toISOString(), updatedAt: new Date(begin + n + 500).toISOString(),
        });
        for (let n = 0; n < 5_000; n++) board.accept(snapshot(n, 1, 'pending'));
        const held = board.size;
        board.accept(snapshot(0, 2, 'completed'));
        board.accept(snapshot(4_999, 2, 'completed'));
        board.accept(snapshot(4_999, 2, 'completed'));
        for (let n = 3; n < 200; n++) board.accept(snapshot(4_999, n, 'completed'));
        const sum = (name) => board.rates.slots(Date.now()).reduce((total, slot) => total + slot[name], 0);
        return {
          bound: TASKS_MAX, held, full: board.full, again: board.get('t0') !== undefined, counts: board.counts,
          size: board.size, created: sum('created'), completed: sum('completed'),
          prompt: board.get('t4999').prompt.length, seen: board.get('t4999').seen.length,
        };
        """
    )
    assert found["bound"] <= found["held"] <= found["bound"] * 1.1
    assert sum(found["counts"].values()) == found["size"] == found["held"]
    assert found["counts"]["completed"] == 1
    assert (found["full"], found["again"]) == (True, False)
    assert (found["created"], found["completed"]) == (5_000, 2), "what was let go is still counted in the rates"
    assert found["prompt"] <= 2_000
    assert found["seen"] <= 32


def test_what_is_older_than_what_was_read_does_not_come_in_alone() -> None:
    sizes = node(
        """
        const { Board } = await import('./dashboard/board.js');
        const board = new Board();
        const snapshot = (n) => ({
          taskId: `t${n}`, prompt: '', status: 'pending', version: 1, attempt: 1,
          createdAt: new Date(n).toISOString(), updatedAt: new Date(n).toISOString(),
        });
        board.accept(snapshot(10));
        board.settle();
        board.accept(snapshot(9));
        const older = board.size;
        board.accept(snapshot(11));
        return [older, board.size];
        """
    )
    assert sizes == [1, 2]


def test_percentiles_and_the_last_minute() -> None:
    p50, p95, none, minute = node(
        """
        const { Rates, percentile } = await import('./dashboard/rates.js');
        const rates = new Rates();
        const now = 1_800_000_005_000;
        for (let ms = 10; ms <= 10_000; ms += 10) rates.ended('completed', now - (ms % 300_000), ms);
        const slots = rates.slots(now);
        for (let n = 1; n <= 120; n++) rates.created(now - n * 1_000);
        return [percentile(slots, 0.5), percentile(slots, 0.95), percentile(slots.slice(0, 5), 0.5),
                rates.lastMinute(now).created];
        """
    )
    assert p50 == pytest.approx(5_000, rel=0.03)
    assert p95 == pytest.approx(9_500, rel=0.03)
    assert none is None
    assert minute == pytest.approx(60, abs=1)


def test_a_timeline_tells_each_attempt_and_nothing_twice() -> None:
    moment = {"attempt": 1, "progress": None, "message": None}
    seen = [
        {**moment, "version": 1, "status": "pending", "atMs": 0},
        {**moment, "version": 2, "status": "processing", "atMs": 10},
        {**moment, "version": 3, "status": "processing", "atMs": 20, "progress": 30, "message": "Mixing"},
        {**moment, "version": 4, "status": "processing", "atMs": 30, "progress": 60, "message": "Mixing"},
        {**moment, "version": 5, "status": "failed", "atMs": 40},
    ]
    replayed = [
        {**moment, "version": 6, "status": "pending", "atMs": 50, "attempt": 2},
        {**moment, "version": 7, "status": "failed", "atMs": 60, "attempt": 2},
        {**moment, "version": 2, "status": "processing", "atMs": 10},
    ]
    told, unseen = node(
        """
        const { merge, steps } = await import('./dashboard/timeline.js');
        const task = { version: 7, status: 'failed', error: 'the lamp broke' };
        const tell = (moments) => steps(merge(0, moments), task).map(({ atMs, text }) => [atMs, text]);
        return [tell([...seen, ...replayed]), tell(replayed)];
        """,
        seen=seen,
        replayed=replayed,
    )
    again = [[50, "Asked for again, attempt 2"], [60, "Failed: the lamp broke"]]
    assert told == [[0, "Accepted"], [10, "Started"], [20, "Mixing, 30 %"], [40, "Failed"], *again]
    assert unseen == [[0, "Accepted"], [10, "Started"], *again]


def test_a_stream_means_the_same_in_whatever_pieces_it_comes() -> None:
    """Lines end in three ways; what ends a line in a script, but not in a stream, ends none."""
    text = "retry: 5\r\n\r\n:\nid: 1\r\nevent: a\r\ndata: x\u2028y\r\n\r\n"
    text += "event:b\rdata: 1\rdata:  2\r\rdata\nid\n\nevent: c\n\n"
    ways = node(
        """
        const { parser } = await import('./stream.js');
        return [...text].map((_, less) => {
          const heard = [];
          const take = parser((...event) => heard.push(event));
          for (let at = 0; at < text.length; at += less + 1) take(text.slice(at, at + less + 1));
          return heard;
        });
        """,
        text=text,
    )
    expected = [["retry", "5"], ["a", "x\u2028y", "1"], ["b", "1\n 2", "1"], ["", "", ""]]
    assert ways == [expected] * len(text)


def test_what_is_deleted_does_not_come_back() -> None:
    """Neither into the list of the page nor onto the board; how many are remembered is bounded."""
    found = node(
        """
        const { Board } = await import('./dashboard/board.js');
        const { Tasks } = await import('./tasks.js');
        const { Gone } = await import('./gone.js');
        const now = new Date().toISOString();
        const snapshot = (version, status) => ({
          taskId: 't', prompt: '', status, version, attempt: 1, createdAt: now, updatedAt: now,
        });
        const [board, tasks, gone] = [new Board(), new Tasks(), new Gone()];
        for (const known of [board, tasks]) {
          known.accept(snapshot(1, 'pending'));
          known.delete('t');
          known.delete('t');
          known.delete('never seen');
          known.accept(snapshot(2, 'completed'));
        }
        for (let n = 0; n < 100_000; n++) gone.add(`t${n}`);
        let kept = 0;
        for (let n = 0; n < 100_000; n++) kept += gone.has(`t${n}`);
        const ended = board.rates.slots(Date.now()).reduce((total, slot) => total + slot.completed, 0);
        return [board.size, board.counts, ended, tasks.size, kept, gone.has('t99999')];
        """
    )
    assert found == [0, {"pending": 0, "processing": 0, "completed": 0, "failed": 0}, 0, 0, 1_000, True]


def test_what_has_vanished_is_known_only_where_the_list_was_read() -> None:
    part, whole, nothing_read = node(
        """
        const { vanished } = await import('./all.js');
        const at = (second) => `2026-01-01T00:00:0${second}Z`;
        const known = [['older', 1], ['same', 2], ['there', 3], ['gone', 3]].map(([taskId, second]) => (
          { taskId, createdAt: at(second) }));
        known.push({ taskId: 'in ms', createdAt: Date.parse(at(4)) });
        const listed = [{ taskId: 'there', createdAt: at(3) }, { taskId: 'last', createdAt: at(2) }];
        return [vanished(known, listed, false), vanished(known, listed, true), vanished(known, [], false)];
        """
    )
    assert part == ["gone", "in ms"]
    assert whole == ["older", "same", "gone", "in ms"]
    assert nothing_read == []
