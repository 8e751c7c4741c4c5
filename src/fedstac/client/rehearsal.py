"""Ask the server, batch by batch, what would become of documents if they were published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fedstac.client.documents import DocumentTrouble, ReadyDocument
from fedstac.client.publishing import BATCH, BATCH_BYTES, JUDGED, sort_out
from fedstac.client.transport import Invalid
from fedstac.client.values import DryRunResult

if TYPE_CHECKING:
    from fedstac.client import Client

UPDATE = "update"  # the same version with the same files and other metadata
WORDS = {"updated": UPDATE, "replaced": UPDATE}


@dataclass(frozen=True, slots=True)
class Foreseen:
    """The forecast for the document at `place`: new, newer, older, update, identical, or rejected."""

    place: str
    forecast: DryRunResult

    def as_json(self) -> dict[str, Any]:
        one = self.forecast
        findings = [finding.as_json() for finding in one.findings]
        update = {"changed": one.changed, "last_change": one.last_change} if one.outcome == UPDATE else {}
        return {"place": self.place, "id": one.id, "outcome": one.outcome, "type": one.type, "detail": one.detail,
                "findings": findings, **update}  # fmt: skip


class Rehearsal:
    """Asks the server about each document, reports its forecast, and yields what is left to publish.

    Versions of one dataset see each other only within a batch. `counts`: documents by outcome.
    """

    def __init__(
        self,
        client: Client,
        report: Callable[[Foreseen], None],
        *,
        skip: Callable[[], None] = lambda: None,
        batch: int = BATCH,
    ) -> None:
        """Prepare a rehearsal. `report` gets each document that is not refused, `skip` each that need not be sent."""
        self._client, self._report, self._skip, self._size = client, report, skip, max(1, batch)
        self.counts: Counter[str] = Counter()

    def unpublished(
        self, documents: Iterable[ReadyDocument | DocumentTrouble]
    ) -> Iterator[ReadyDocument | DocumentTrouble]:
        """Yield the documents that are not there yet, and troubles. An identical one is only reported."""
        for document in self.forecasts(documents):
            if document is None:
                self._skip()
            else:
                yield document

    def forecasts(
        self, documents: Iterable[ReadyDocument | DocumentTrouble]
    ) -> Iterator[ReadyDocument | DocumentTrouble | None]:
        """Yield the same, with None for each document that is identical."""
        for batch in self._batches(documents):
            if isinstance(batch, DocumentTrouble):
                self.counts[batch.status] += 1
                yield batch
                continue
            pending = [batch]
            while pending:
                part = pending.pop()
                try:
                    forecasts = self._client.rehearse(part[0].collection, [entry.text for entry in part])
                except Invalid as refusal:
                    if refusal.status not in JUDGED:
                        raise
                    troubles, rest = sort_out(part, refusal)
                    self.counts["rejected"] += len(troubles)
                    yield from troubles
                    pending += reversed(rest)
                else:
                    for entry, one in zip(part, forecasts, strict=True):
                        yield self._unpublished(entry, one)

    def _unpublished(self, entry: ReadyDocument, forecast: DryRunResult) -> ReadyDocument | DocumentTrouble | None:
        """Report and count a forecast. Return the document if it is left to publish."""
        forecast = replace(forecast, outcome=WORDS.get(forecast.outcome, forecast.outcome))
        self.counts[forecast.outcome] += 1
        if forecast.outcome == "rejected":
            kind, detail = forecast.type or "unknown", forecast.detail or ""
            return DocumentTrouble(entry.place, entry.id, "rejected", kind, detail, forecast.findings)
        self._report(Foreseen(entry.place, forecast))
        return entry if forecast.outcome != "identical" else None

    def _batches(
        self, documents: Iterable[ReadyDocument | DocumentTrouble]
    ) -> Iterator[list[ReadyDocument] | DocumentTrouble]:
        """Yield runs of entries of one collection, each as large as a batch may be."""
        batch: list[ReadyDocument] = []
        size = 0
        for document in documents:
            if isinstance(document, DocumentTrouble):
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
