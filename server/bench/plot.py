"""A plot of the figures: bars of µs an event, for each contender and load, as plain SVG. Pure.

Its colours follow those of the page it is shown on, light or dark, by a style of its own.
"""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from server.bench.figures import Figures
from server.bench.table import loads

WIDTH, LEFT, RIGHT, ROW, BAR = 760, 150, 70, 26, 16
TITLE = "Processor time of the server by event delivered"
TITLE_HEIGHT, GROUP_HEIGHT = 44, 34
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 15px } .quiet { fill: #59636e }
.bar { fill: #8c959f } .ours { fill: #0969da } .axis { stroke: #d1d9e0 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .quiet { fill: #9198a1 } .bar { fill: #656c76 } .ours { fill: #4493f8 }
  .axis { stroke: #3d444d }
}
"""


def svg(figures: Figures) -> str:
    """Raises ValueError where nothing was pushed."""
    groups = [
        (
            f"{push.streams} streams, {title}",
            [("taskbeam", push.us_per_event), *((n, p.us_per_event) for n, p in push.peers.items())],
        )
        for title, push in loads(figures)
    ]
    if not groups:
        raise ValueError("no figures of pushing to be drawn")
    scale = _scale(max(value for _, bars in groups for _, value in bars))
    parts: list[str] = []
    top = TITLE_HEIGHT
    for title, bars in groups:
        parts.append(f'<text class="quiet" x="16" y="{top + 20}">{escape(title)}</text>')
        top += GROUP_HEIGHT
        parts += _bars(bars, top, scale)
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{LEFT}" y1="{top - 4}" y2="{top + ROW * len(bars) - 6}"/>')
        top += ROW * len(bars) + 8
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 8}" role="img" aria-label="{TITLE}">',
            f"<style>{STYLE}</style>",
            f'<text class="title" x="16" y="28">{TITLE}, µs (less is better)</text>',
            *parts,
            "</svg>\n",
        ]
    )


def _scale(largest: float) -> float:
    """Pixels a microsecond, up to the next round number."""
    step = 10.0 ** math.floor(math.log10(max(largest, 0.01)))
    return (WIDTH - LEFT - RIGHT) / (math.ceil(largest / step) * step)


def _bars(bars: Sequence[tuple[str, float]], top: int, scale: float) -> list[str]:
    parts = []
    for row, (name, value) in enumerate(bars):
        y = top + row * ROW
        kind = "bar ours" if row == 0 else "bar"
        width = max(1.0, value * scale)
        parts += [
            f'<text x="{LEFT - 10}" y="{y + 13}" text-anchor="end">{escape(name)}</text>',
            f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>',
            f'<text x="{LEFT + width + 6:.1f}" y="{y + 13}">{value:.1f}</text>',
        ]
    return parts
