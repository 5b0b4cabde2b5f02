"""Lines over time as SVG: panels below each other that share the axis of time. Knows nothing of what it draws."""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

__all__ = ["Line", "Mark", "Panel", "chart", "nice_ticks"]

WIDTH: Final = 900
PANEL_HEIGHT: Final = 220
LEFT: Final = 80
RIGHT: Final = 20
TOP: Final = 40
GAP: Final = 50
COLOURS: Final = ("#1f6feb", "#d1242f", "#1a7f37", "#8250df", "#bf8700", "#57606a")
TICKS: Final = 5


class Line(NamedTuple):
    """Points are (seconds, value), in order of time."""

    name: str
    points: Sequence[tuple[float, float]]


class Panel(NamedTuple):
    title: str
    lines: Sequence[Line]


class Mark(NamedTuple):
    """Something that happened, drawn through all panels."""

    at_s: float
    name: str


def nice_ticks(top: float) -> list[float]:
    """From 0 to at least `top` in steps of 1, 2 or 5 times a power of ten; at most seven of them."""
    if top <= 0:
        return [0.0, 1.0]
    rough = top / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    return [round(number * step, 10) for number in range(math.ceil(top / step - 1e-9) + 1)]


def chart(title: str, panels: Sequence[Panel], marks: Sequence[Mark] = ()) -> str:
    """The whole file as text. A panel without points shows its axes."""
    height = TOP + len(panels) * (PANEL_HEIGHT + GAP)
    span = max((x for panel in panels for line in panel.lines for x, _ in line.points), default=1.0) or 1.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{WIDTH / 2}" y="22" text-anchor="middle" font-size="15">{escape(title)}</text>',
    ]
    for number, panel in enumerate(panels):
        parts += _panel(panel, top=TOP + number * (PANEL_HEIGHT + GAP), span=span, marks=marks)
    return "\n".join([*parts, "</svg>\n"])


def _panel(panel: Panel, *, top: int, span: float, marks: Sequence[Mark]) -> list[str]:
    bottom, width = top + PANEL_HEIGHT, WIDTH - LEFT - RIGHT
    rises = nice_ticks(max((y for line in panel.lines for _, y in line.points), default=0.0))
    seconds = [tick for tick in nice_ticks(span) if tick <= span * 1.001]

    def x_of(at_s: float) -> float:
        return LEFT + width * at_s / span

    def y_of(value: float) -> float:
        return bottom - PANEL_HEIGHT * value / rises[-1]

    parts = [f'<text x="{LEFT}" y="{top - 6}" font-weight="bold">{escape(panel.title)}</text>']
    for tick in rises:
        parts.append(f'<path d="M{LEFT} {y_of(tick):.1f}h{width}" stroke="#d0d7de" fill="none"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y_of(tick) + 4:.1f}" text-anchor="end">{tick:,g}</text>')
    parts += [f'<text x="{x_of(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g} s</text>' for tick in seconds]
    for mark in marks:
        parts.append(f'<path d="M{x_of(mark.at_s):.1f} {top}V{bottom}" stroke="#57606a" stroke-dasharray="4 3" fill="none"/>')
        parts.append(f'<text x="{x_of(mark.at_s) + 3:.1f}" y="{top + 12}" fill="#57606a">{escape(mark.name)}</text>')
    for number, line in enumerate(panel.lines):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in line.points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(
            f'<text x="{WIDTH - RIGHT - 90 * (len(panel.lines) - number - 1)}" y="{top - 6}" text-anchor="end" fill="{colour}">'
            f"{escape(line.name)}</text>"
        )
    return parts
