"""Charts as SVG: a line for each server on logarithmic axes. No library, no style of a browser's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 64, 100, 34, 46
COLOURS = ("#1f5fa8", "#b5532a", "#3c7d43")
Point = tuple[float, float]


def chart(title: str, lines: Mapping[str, Sequence[Point]], *, x_label: str, y_label: str) -> str:
    """Return an SVG image of lines given as (x, y), all of them positive."""
    points = [point for line in lines.values() for point in line]
    across, up = _decades([x for x, _ in points]), _decades([y for _, y in points])

    def place(point: Point) -> Point:
        x, y = (
            (math.log10(value) - low) / (high - low) for value, (low, high) in zip(point, (across, up), strict=True)
        )
        return LEFT + x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
        f' font-size="11" role="img" aria-label="{escape(title)}: {escape(y_label)} by {escape(x_label)}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="20" font-size="13" font-weight="bold" fill="#222">{escape(title)}</text>',
    ]
    for exponent in range(across[0], across[1] + 1):
        x, _ = place((10.0**exponent, 10.0 ** up[0]))
        parts.append(_line(x, TOP, x, HEIGHT - BOTTOM))
        parts.append(_text(x, HEIGHT - BOTTOM + 15, _number(exponent), "middle"))
    for exponent in range(up[0], up[1] + 1):
        _, y = place((10.0 ** across[0], 10.0**exponent))
        parts.append(_line(LEFT, y, WIDTH - RIGHT, y))
        parts.append(_text(LEFT - 6, y + 4, _number(exponent), "end"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_label, "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(_text(16, middle, y_label, "middle", f' transform="rotate(-90 16 {middle:g})"'))
    for (name, line), colour in zip(sorted(lines.items()), COLOURS, strict=False):
        places = [place(point) for point in sorted(line)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        x, y = places[-1]
        parts.append(_text(x + 8, y + 4, f"{name} {_short(max(line)[1])}", "start", f' style="fill:{colour}"'))
    return "\n".join((*parts, "</svg>", ""))


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """Return the exponents of the powers of ten around the values."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _number(exponent: int) -> str:
    value = 10.0**exponent
    return f"{value:g}" if exponent < 4 else f"{value:,.0f}".replace(",", " ")


def _short(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#444"{more}>{escape(text)}</text>'
