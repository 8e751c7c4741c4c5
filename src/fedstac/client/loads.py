"""Full-state loads, as exchanges: state everything in parts, look at what that changes, have it done.

A load keeps its parts at the server: whoever is interrupted sends what is missing, and goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from fedstac.client.documents import DocumentTrouble, ReadyDocument
from fedstac.client.paths import collection_path
from fedstac.client.transport import LINES_BODY, ClientError, Exchange, Pause, ServerCall, object_of

PART, PART_BYTES = 2000, 16 << 20  # documents and bytes of a part
PAGE = 1000
FIRST_LOOK, LONGEST_LOOK = 0.2, 2.0  # seconds between looks at a load that is being compared

Json = Mapping[str, Any]


class SourceBroken(ClientError):
    """A source of a load cannot be read whole. What it does not state would be cleared, so nothing of it is sent."""


@dataclass(frozen=True, slots=True)
class StatePart:
    """A part of a load: documents, one a line."""

    content: bytes
    count: int

    @property
    def digest(self) -> str:
        """The SHA-256 of the content, as the server tells it of the parts that it has."""
        return hashlib.sha256(self.content).hexdigest()


def load_parts(
    documents: Iterable[ReadyDocument | DocumentTrouble], *, most: int = PART, most_bytes: int = PART_BYTES
) -> Iterator[StatePart]:
    """Yield the parts of a load. SourceBroken for the first document that cannot be read."""
    lines: list[bytes] = []
    size = 0
    for document in documents:
        if isinstance(document, DocumentTrouble):
            raise SourceBroken(
                f"{document.place} is no item: {document.detail}; what cannot be read would be cleared, so nothing is "
                "loaded"
            )
        if lines and (len(lines) == most or size + len(document.text) > most_bytes):
            yield StatePart(b"\n".join(lines), len(lines))
            lines, size = [], 0
        lines.append(document.text)
        size += len(document.text) + 1
    if lines:
        yield StatePart(b"\n".join(lines), len(lines))


def begin_load(
    collection: str, part: StatePart | None = None, *, mode: str = "apply", override: str = ""
) -> Exchange[dict[str, Any]]:
    """Begin a load with its first part; without one it states nothing yet. Nothing changes."""
    headers = dict(LINES_BODY)
    if override:
        headers["Fedstac-Override"] = override.encode().decode("latin-1")
    call = ServerCall(
        "POST", f"{collection_path(collection)}/reconcile", {"complete": "false", "mode": mode},
        content=part.content if part is not None else b"", headers=headers,
    )  # fmt: skip
    return (yield from object_of(call))


def put_load_part(id: str, number: int, part: StatePart) -> Exchange[dict[str, Any]]:
    """Send a part of a load. The same part again changes nothing."""
    return (
        yield from object_of(ServerCall("PUT", f"{_path(id)}/parts/{number}", content=part.content, headers=LINES_BODY))
    )


def load(id: str) -> Exchange[dict[str, Any]]:
    """Return a load as it stands. NotFound where there is none, or it is somebody else's."""
    return (yield from object_of(ServerCall("GET", _path(id))))


def loads(*, limit: int = 20) -> Exchange[list[dict[str, Any]]]:
    """Return the latest loads, the newest first, without their parts; of everybody, for an administrator."""
    page = yield from object_of(ServerCall("GET", "/loads", {"limit": limit}))
    return list(page["loads"])


def load_datasets(id: str, *, change: str | None = None, after: str = "") -> Exchange[Sequence[dict[str, Any]]]:
    """Return the next datasets of a load after an id, with what becomes of them; of one change if given."""
    params = {"limit": PAGE, "after": after, **({"change": change} if change else {})}
    page = yield from object_of(ServerCall("GET", f"{_path(id)}/datasets", params))
    return list(page["datasets"])


def compare_load(id: str) -> Exchange[dict[str, Any]]:
    """Compare a load with what the server has, wait for the end of that, and return what it would change."""
    present = yield from object_of(ServerCall("POST", f"{_path(id)}/apply", {"dry_run": "true"}, wait=60))
    pause = FIRST_LOOK
    while present["status"] == "comparing":
        yield Pause(pause)
        pause = min(pause * 1.5, LONGEST_LOOK)
        present = yield from load(id)
    return present


def apply_load(id: str, *, confirm: int | None = None, comparison: str | None = None) -> Exchange[dict[str, Any]]:
    """Apply a load that was compared; `confirm`: how many datasets go. Again is the same.

    `comparison`: which one you saw, as the load says it in `compared`. Conflict where another one counts by now, or
    where the number has to be confirmed, and is another one.
    """
    values = {"confirm": confirm, "compared": comparison}
    params = {name: value for name, value in values.items() if value is not None}
    return (yield from object_of(ServerCall("POST", f"{_path(id)}/apply", params, wait=60)))


def cancel_load(id: str) -> Exchange[dict[str, Any]]:
    """End a load that is not applied. Conflict where it is."""
    return (yield from object_of(ServerCall("POST", f"{_path(id)}/cancel")))


def _path(id: str) -> str:
    return f"/loads/{quote(id, safe='')}"
