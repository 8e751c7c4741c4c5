"""Results: one JSON object a line on standard output, for people and programs."""

from __future__ import annotations

import json
from collections.abc import Mapping

LOWER_IS_BETTER = ("ms", "us/item")


def line(
    name: str, value: float, unit: str, peer: float | None = None, *, peer_name: str | None = None,
    detail: Mapping[str, object] | None = None,
) -> None:  # fmt: skip
    """Print one result. `ratio` says how many times better than the peer fedstac is, also if less is better."""
    ratio = None
    if peer:
        ratio = round(peer / value if unit in LOWER_IS_BETTER else value / peer, 2)
    print(
        json.dumps(
            {
                "name": name, "value": _short(value), "unit": unit, "peer": None if peer is None else _short(peer),
                "ratio": ratio, "peer_name": peer_name, "detail": detail or {},
            }
        ),
        flush=True,
    )  # fmt: skip


def _short(value: float) -> float:
    return round(value, 1) if abs(value) < 1000 else round(value)
