"""Events that no node would write: each spoils a sound one in a way of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
Spoil = Callable[[Json], None]
LONG = "".join(chr(0x4E00 + n * 7919 % 20000) for n in range(20_000))  # nothing that compresses


def put(*path: str, value: object) -> Spoil:
    """Put a value into an event."""

    def change(event: Json) -> None:
        for name in path[:-1]:
            event = event[name]
        event[path[-1]] = value

    return change


UNKNOWN_TYPE = put("type", value="org.fedstac.dataset.invented.v1")  # harmless: an event has the whole state
SPOILS: tuple[Spoil, ...] = (
    put("data", "created", value="2026-11-24T00:00:00.000000"), put("data", "created", value="2026-11-24"),
    put("data", "updated", value="0001-01-01T00:00:00+14:00"), put("data", "updated", value=0),
    put("data", "version", value="20200101"), put("data", "version", value=True), put("data", "version", value=1.5),
    put("data", "version", value=2**63), put("data", "version", value=-(2**40)),
    put("data", "publisher", value=None), put("data", "publisher", value="x\0"), put("data", "state", value="gone"),
    put("data", "cv", value={"version": 5}), put("data", "cv", value={"version": "6.2.60.0\0"}),
    put("data", "cv", value=7),
    put("data", "cv", "excused", value=[["a"]]), put("data", "retraction", value=[]), put("data", "digest", value="00"),
    put("data", "id", value="CMIP6.another.v1"), put("data", "id", value="x" * 9000), put("data", "id", value=""),
    put("data", "collection", value="plain"), put("data", "document", "id", value="CMIP6.another.v1"),
    put("data", "document", "collection", value="plain"), put("data", "document", value=[]),
    put("data", "document", "properties", "start_datetime", value="never"),
    put("data", "document", "geometry", value={"type": "Point", "coordinates": ["x", None]}),
    put("partitionkey", value=LONG), put("partitionkey", value="\0"), put("partitionkey", value=None),
    put("data", "seq", value="1"), put("epoch", value=1e30), put("source", value=None),
    put("type", value=None), UNKNOWN_TYPE, put("data", value=None),
)  # fmt: skip
