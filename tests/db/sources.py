"""An origin that says what it is told to say, for tests of followers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from fedstac.bootstrap import Node
from fedstac.demo import sample
from fedstac.domain import documents, events
from fedstac.domain.events import Cursor
from fedstac.domain.model import Record, State
from fedstac.domain.vocabulary import DatasetName
from fedstac.messaging.origin import Origin, SnapshotPage
from fedstac.messaging.sources import EventPage, Offsets, SourceRefused
from fedstac.messaging.sources.addresses import SourceAddress
from fedstac.settings import folder
from fedstac.workers.following import Follower
from fedstac.workers.index_node import IndexHandler

Json = dict[str, Any]


NOW = datetime(2026, 11, 24, tzinfo=UTC)


RAW = (
    (folder("cv") / "CMIP6" / "6.2.60.0.json").read_bytes().replace(b'"version":"6.2.60.0"', b'"version":"6.2.61.0"', 1)
)


COLLECTION = orjson.dumps(sample.collection()).decode()


def digest_of(document: str) -> bytes:
    return documents.digest(orjson.loads(document))


class Source(Origin):
    """An origin and its feed, which say what a test wants."""

    def __init__(
        self, entries: Sequence[str], served: bytes | SourceRefused = RAW, *, origin: str = "north", epoch: int = 1,
        document: str = COLLECTION,
    ) -> None:  # fmt: skip
        super().__init__(SourceAddress(f"http://{origin}.invalid", ""))
        self.origin, self.epoch = origin, epoch
        head = events.current_collection("CMIP6", origin, epoch, 1, document=document, digest=digest_of(document))
        self.entries, self.served = [orjson.loads(text) for text in (head, *entries)], served

    async def head(self) -> tuple[str, Cursor]:
        return self.origin, Cursor(self.epoch, 1)

    async def begin(self, after: Cursor, offsets: Offsets) -> None:
        pass

    async def receive(self, after: Cursor, *, limit: int, wait: float) -> EventPage:
        return EventPage([], after)

    async def snapshot(self, page: str | None, *, limit: int) -> SnapshotPage:
        return SnapshotPage(self.origin, Cursor(self.epoch, 1), self.entries, None)

    async def vocabulary(self, project: str, version: str) -> bytes:
        if isinstance(self.served, SourceRefused):
            raise self.served
        return self.served


def entry(
    node: Node, item: Json, version: str | None, *, digest: str | None = None, excused: str | None = None,
    origin: str = "north", epoch: int = 1, seq: int = 1, latest: bool = True,
) -> str:  # fmt: skip
    """Return an entry of an origin's snapshot, sound but for what the item says."""
    name = item["id"].rpartition(".v")
    lineage = f"CMIP6/{name[0]}"
    draft = documents.prepare(item, DatasetName(lineage, int(name[2])), None)
    record = Record(
        collection="CMIP6", id=item["id"], lineage=lineage, origin=origin, version=int(name[2]),
        state=State.PUBLISHED, latest=latest, claims_latest=latest, epoch=epoch, seq=seq, created=NOW, updated=NOW,
        document=draft.text, document_digest=draft.document_digest, files_digest=draft.files_digest,
        publisher="somebody", cv_version=version, cv_excused=excused,
    )  # fmt: skip
    event: Json = orjson.loads(events.current(record, epoch, node.checker.vocabularies.digest_of))
    if digest is not None:
        event["data"]["cv"]["digest"] = digest
    return orjson.dumps(event).decode()


def follower_of(node: Node, source: Source, applied: Cursor = events.START) -> Follower:
    return Follower(node, IndexHandler(node, source), source, source, origin_name=source.origin, applied_cursor=applied)


async def follow(node: Node, source: Source) -> Follower:
    follower = follower_of(node, source)
    await follower.take_snapshot(None)
    return follower
