"""Numbers of a replica node as people read them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

UNITS: Final = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def size_in_words(bytes: float) -> str:
    """Return a number of bytes in its largest decimal unit: 1.5 GB, 12 B."""
    for size, unit in UNITS:
        if bytes >= size:
            return f"{bytes / size:.1f} {unit}"
    return f"{bytes:.0f} B"


def rate_in_words(bytes_a_second: float) -> str:
    """Return a rate in bytes a second; a dash for none."""
    return f"{size_in_words(bytes_a_second)}/s" if bytes_a_second > 0 else "-"


def time_in_words(at: datetime | None) -> str:
    """Return a moment to the minute, in UTC; empty for none."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%MZ") if at else ""
