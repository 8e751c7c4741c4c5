"""What only a publishing node's HTTP API has: its head, snapshots, digests, vocabularies; and acknowledgements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import orjson

from fedstac.domain.deletion_reports import ReportResult
from fedstac.domain.events import Cursor
from fedstac.messaging.node_client import NodeClient
from fedstac.messaging.sources import NotServed, RawEvent, SourceAway
from fedstac.messaging.sources.addresses import SourceAddress

BEYOND = 2**62  # every position


@dataclass(frozen=True, slots=True)
class SnapshotPage:
    """A page of an origin's current state; `following` names the next one, None is the last."""

    origin: str
    cursor: Cursor
    entries: Sequence[RawEvent]
    following: str | None


class Origin(NodeClient):
    """The node that events come from, whatever brings them."""

    has_snapshots = True

    async def head(self) -> tuple[str, Cursor]:
        """Return the origin's name and its last position."""
        body = await self.get_json("/events/head")
        return body["origin"], Cursor.parse(body["cursor"])

    async def progress(self) -> tuple[Cursor, dict[str, Cursor]]:
        """Return the last position, and through where each consumer has acknowledged."""
        body = await self.get_json("/events/head")
        return Cursor.parse(body["cursor"]), {row["node"]: Cursor.parse(row["through"]) for row in body["nodes"]}

    async def snapshot(self, page: str | None, *, limit: int) -> SnapshotPage:
        """Return a page of the origin's current state; None is the first."""
        body = await self.get_json("/snapshot", {"limit": limit} | ({"page": page} if page else {}))
        return SnapshotPage(body["origin"], Cursor.parse(body["cursor"]), body["entries"], body["next"])

    async def current(self, collection: str, ids: Sequence[str]) -> SnapshotPage:
        """Return the current state of datasets, of those that the origin has; at most 100."""
        body = await self.get_json("/snapshot", {"collection": collection, "id": list(ids)})
        return SnapshotPage(body["origin"], Cursor.parse(body["cursor"]), body["entries"], None)

    async def digests(self) -> tuple[Cursor, list[dict[str, Any]]]:
        """Return the position and a fingerprint of each collection and bucket there."""
        body = await self.get_json("/digests")
        return Cursor.parse(body["cursor"]), body["entries"]

    async def bucket(self, collection: str, bucket: int) -> list[dict[str, Any]]:
        """Return the digests of the records of one bucket."""
        body = await self.get_json("/digests", {"collection": collection, "bucket": bucket})
        entries: list[dict[str, Any]] = body["entries"]
        return entries

    async def vocabulary(self, project: str, version: str) -> bytes:
        """Return a vocabulary's bytes. NotServed where the origin has no such version."""
        return (await self.send("GET", f"/vocabularies/{quote(project, safe='')}/{quote(version, safe='')}")).content

    async def acknowledge(
        self, through: Cursor, exceptions: Sequence[Mapping[str, str]], *, consumer: str | None = None
    ) -> None:
        """Tell the origin that everything through a position is done here, but for the exceptions.

        `consumer`: which of this node's consumers says so; None: its index.
        """
        body: dict[str, object] = {"epoch": through.epoch, "through": through.pos, "exceptions": list(exceptions)}
        if consumer is not None:
            body["consumer"] = consumer
        path = "/events/status"
        answer = await self.send("POST", path, content=orjson.dumps(body))
        if answer.content:  # a node says no more than 204; the page of a proxy is no acknowledgement
            self.object_of(answer, path)

    async def report(self, reports: Sequence[Mapping[str, object]]) -> list[ReportResult]:
        """Tell the origin how far this node is with its parts of deletions. Return what became of each report."""
        path = "/deletions/reports"
        answer = self.object_of(await self.send("POST", path, content=orjson.dumps({"reports": reports})), path)
        try:
            results = [ReportResult(each["result"]) for each in answer["reports"]]
        except (LookupError, TypeError, ValueError) as error:
            raise SourceAway(f"the answer to reports on deletions cannot be read: {error!r}"[:300]) from error
        if len(results) != len(reports):
            raise SourceAway(f"{len(reports)} reports on deletions have {len(results)} answers")
        return results


class TopicOrigin(Origin):
    """In place of the node behind a topic in ESGF's format: there is none. It has a name, and nothing else to give."""

    has_snapshots = False

    def __init__(self, name: str) -> None:
        super().__init__(SourceAddress("http://topic.invalid", ""))  # nothing is sent
        self.name = name

    async def head(self) -> tuple[str, Cursor]:
        """Return the topic's name and a place beyond its end, which nobody knows."""
        return self.name, Cursor(1, BEYOND)

    async def acknowledge(
        self, through: Cursor, exceptions: Sequence[Mapping[str, str]], *, consumer: str | None = None
    ) -> None:
        """Do nothing: nobody waits for it."""

    async def send(
        self, method: str, path: str, parameters: Mapping[str, Any] | None = None, *, content: bytes | None = None
    ) -> httpx.Response:
        """Refuse: NotServed."""
        raise NotServed(f"{self.name} is a topic in ESGF's format: it has no {path}, only events")


def origin_of(source: SourceAddress) -> Origin:
    """Return the origin of a source. Use it with `async with`."""
    name = source.topic_origin
    return Origin(source) if name is None else TopicOrigin(name)
