"""What would become of documents if they were published: told before they are sent, batch by batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fedstac.client.documents import Entry, Trouble
from fedstac.client.publishing import BATCH, BATCH_BYTES, JUDGED, sort_out
from fedstac.client.transport import Invalid
from fedstac.client.values import Rehearsed

if TYPE_CHECKING:
    from fedstac.client import Client

UPDATE = "update"  # the same version with the same files and other metadata
WORDS = {"updated": UPDATE, "replaced": UPDATE}


@dataclass(frozen=True, slots=True)
class Foreseen:
    """A document that was read at `place` would be new, newer, older, update, identical, or rejected."""

    place: str
    told: Rehearsed

    def as_json(self) -> dict[str, Any]:
        told = self.told
        found = [finding.as_json() for finding in told.findings]
        update = {"changed": told.changed, "last_change": told.last_change} if told.outcome == UPDATE else {}
        return {"place": self.place, "id": told.id, "outcome": told.outcome, "type": told.type, "detail": told.detail,
                "findings": found, **update}  # fmt: skip


class Rehearsal:
    """Asks the server about each document, tells what it says, and lets through what is left to publish.

    Versions of one dataset see each other only within a batch. `counts`: documents by outcome.
    """

    def __init__(
        self,
        client: Client,
        tell: Callable[[Foreseen], None],
        *,
        skip: Callable[[], None] = lambda: None,
        batch: int = BATCH,
    ) -> None:
        """`tell` is called for each document that is not refused, `skip` for each that need not be sent."""
        self._client, self._tell, self._skip, self._size = client, tell, skip, max(1, batch)
        self.counts: Counter[str] = Counter()

    def left(self, documents: Iterable[Entry | Trouble]) -> Iterator[Entry | Trouble]:
        """What is not there yet, and troubles; what is identical is only told."""
        for document in self.told(documents):
            if document is None:
                self._skip()
            else:
                yield document

    def told(self, documents: Iterable[Entry | Trouble]) -> Iterator[Entry | Trouble | None]:
        """The same, with None for what is identical."""
        for batch in self._batches(documents):
            if isinstance(batch, Trouble):
                self.counts[batch.status] += 1
                yield batch
                continue
            pending = [batch]
            while pending:
                part = pending.pop()
                try:
                    told = self._client.rehearse(part[0].collection, [entry.text for entry in part])
                except Invalid as refusal:
                    if refusal.status not in JUDGED:
                        raise
                    troubles, rest = sort_out(part, refusal)
                    self.counts["rejected"] += len(troubles)
                    yield from troubles
                    pending += reversed(rest)
                else:
                    for entry, one in zip(part, told, strict=True):
                        yield self._sorted(entry, one)

    def _sorted(self, entry: Entry, told: Rehearsed) -> Entry | Trouble | None:
        told = replace(told, outcome=WORDS.get(told.outcome, told.outcome))
        self.counts[told.outcome] += 1
        if told.outcome == "rejected":
            findings = told.findings
            return Trouble(entry.place, entry.id, "rejected", told.type or "unknown", told.detail or "", findings)
        self._tell(Foreseen(entry.place, told))
        return entry if told.outcome != "identical" else None

    def _batches(self, documents: Iterable[Entry | Trouble]) -> Iterator[list[Entry] | Trouble]:
        """Entries of one collection that follow each other."""
        batch: list[Entry] = []
        size = 0
        for document in documents:
            if isinstance(document, Trouble):
                yield document
                continue
            full = len(batch) >= self._size or size + len(document.text) > BATCH_BYTES
            if batch and (full or document.collection != batch[0].collection):
                yield batch
                batch, size = [], 0
            batch.append(document)
            size += len(document.text) + 1
        if batch:
            yield batch
