"""The shape of the figures: for programs, for people, and as a plot."""

from xml.etree import ElementTree

import msgspec
import pytest

from server.bench.figures import (
    Callbacks,
    Durability,
    EndToEnd,
    Figures,
    Idle,
    Join,
    Noise,
    Peer,
    Push,
    Pushes,
    Reconnect,
)
from server.bench.plot import svg
from server.bench.table import command, table
from server.bench.times import Times

pytestmark = pytest.mark.pure

SVG = "{http://www.w3.org/2000/svg}"
SHAPE = {
    "push": {load: {"us_per_event", "floor_us", "ratio", "p50_ms", "p99_ms"} for load in ("w1", "w2", "w2_coalesced")},
    "idle": {"sse_bytes", "ws_bytes"},
    "join": {"us"},
    "callbacks": {"per_second", "us"},
    "end_to_end": {"p50_ms", "p99_ms"},
    "reconnect": {"seconds", "queries"},
    "durability": {"fsync", "synchronous_commit"},
    "noise": {"noisy"},
}


def push(us: float, lost: int = 0) -> Push:
    latency = Times(2_000, 0.2, 0.9, 1.5)
    peers = {"floor": Peer(us / 4, 4.0, latency), "a <peer>": Peer(us * 2, 0.5, latency, "1.2")}
    return Push(
        streams=2_000,
        events=9_000,
        us_per_event=us,
        rounds_us=[us, us + 1, us - 1],
        floor_us=us / 4,
        ratio=4.0,
        p50_ms=0.3,
        p99_ms=1.2,
        p999_ms=2.0,
        events_per_read=1.0,
        lost=lost,
        checked_streams=40,
        peers=peers,
    )


def figures(*, noisy: bool = False, lost: int = 0) -> Figures:
    return Figures(
        push=Pushes(push(30.0, lost), push(12.0), push(4.0)),
        idle=Idle(5_500, 33_000, 3.0),
        join=Join(400.0),
        callbacks=Callbacks(4_000, 812.0, 700.0, 4_000, 4_000, 4_000, 4_000, 0),
        end_to_end=EndToEnd(10_000, 500.0, 5_000, 2.5, 9.0, 15.0, 0),
        reconnect=Reconnect(10_000, 2.5, 412),
        durability=Durability("on", "on"),
        noise=Noise(0.31 if noisy else 0.01, 0.0, 0.02, noisy),
    )


def covers(found: object, shape: object) -> None:
    assert isinstance(found, dict)
    if isinstance(shape, set):
        assert found.keys() >= shape
        assert None not in [found[name] for name in shape]
    elif isinstance(shape, dict):
        for name, inner in shape.items():
            covers(found[name], inner)


def test_programs_find_every_figure() -> None:
    covers(msgspec.json.decode(msgspec.json.encode(figures())), SHAPE)


def test_what_was_not_measured_is_null() -> None:
    found = msgspec.json.decode(msgspec.json.encode(Figures()))
    assert {found[part] for part in SHAPE if part != "push"} == {None}
    assert found["push"] == {"w1": None, "w2": None, "w2_coalesced": None}
    assert table(Figures(), "again").splitlines() == ["repeat: again"]


def test_what_was_lost_is_counted_over_all_parts() -> None:
    assert figures().lost == 0
    assert figures(lost=3).lost == 3


def test_people_are_told_ratios_noise_and_how_to_repeat() -> None:
    text = table(figures(), command(["push", "--floor"]))
    assert "ours 4.00x" in text
    assert "ours 0.50x" in text
    assert "a channel for each stream" in text
    assert "(5000 at 500/s, 10000 streams; lost 0)" in text
    assert "fsync on, synchronous_commit on" in text
    assert text.endswith("repeat: ./run bench push --floor")
    assert "NOISY" not in text
    assert "NOISY: others took 31%" in table(figures(noisy=True), "")


def test_the_plot_draws_every_contender_to_scale_for_both_kinds_of_page() -> None:
    drawing = svg(figures())
    root = ElementTree.fromstring(drawing)  # noqa: S314  (our own)
    bars = root.findall(f"{SVG}rect")
    widths = [float(bar.attrib["width"]) for bar in bars]
    assert len(bars) == 9
    assert [bar.attrib["class"] for bar in bars[:3]] == ["bar ours", "bar", "bar"]
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.01)
    assert widths[2] / widths[0] == pytest.approx(2, rel=0.01)
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    for bar in bars:
        assert float(bar.attrib["x"]) + float(bar.attrib["width"]) < width
        assert float(bar.attrib["y"]) + float(bar.attrib["height"]) < height
    texts = [text.text for text in root.findall(f"{SVG}text")]
    assert {"taskbeam", "floor", "a <peer>", "30.0", "7.5", "60.0"} <= set(texts)
    assert "prefers-color-scheme: dark" in drawing
    with pytest.raises(ValueError, match="no figures"):
        svg(Figures())
