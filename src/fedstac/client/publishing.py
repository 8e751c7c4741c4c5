"""Publish a stream of any length: batches are sent in order, a few requests are followed at a time, and nothing is kept
of those that are done.

A batch that is refused as a whole is sent again without the items that the findings name, or in halves if they name
none, so that each refused item is known.
"""

from __future__ import annotations

import re
import time
from bisect import insort
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from fedstac.client.documents import DocumentTrouble, ReadyDocument
from fedstac.client.transport import Invalid, NotAuthorised, Refusal, Stalled
from fedstac.client.values import AcceptedBatch, Request
from fedstac.domain.errors import Finding, Severity

if TYPE_CHECKING:
    from fedstac.client import Client

BATCH, BATCH_BYTES = 200, 16 << 20
MOST_WAITING_BYTES = 64 << 20  # of batches of several collections that are not full yet
MOST_OPEN = 8  # requests that are followed at a time
FIRST_LOOK, LONGEST_LOOK = 0.05, 1.0  # seconds between looks
JUDGED = (400, 409, 413, 422)  # the content is refused; another status does not depend on the content
PLACE = re.compile(r"/(?:features/)?(\d+)(?=/|$)")

Step: TypeAlias = AcceptedBatch | DocumentTrouble | Request


@dataclass(slots=True)
class Open:
    """A request that is followed: the places of its items in the source, and the counts of it so far."""

    batch: AcceptedBatch
    places: Sequence[str]
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Batch:
    entries: list[ReadyDocument] = field(default_factory=list)
    size: int = 0


class Publishing:
    """One run of publishing.

    `counts`: how many items were read, skipped (by the caller), sent, accepted, done, rejected and failed so far.
    `outcomes`: what was done with the items of settled requests. `visible`: how many items each of the nodes
    `visible_at` shows. `open`: the accepted requests that are not settled. `under_way`: the batch that is being sent.

    `patience`: seconds without any progress after which Stalled is raised; 0: never. `on_accepted` is called with each
    accepted batch before anything else happens.
    """

    def __init__(
        self,
        client: Client,
        *,
        batch: int = BATCH,
        wait: bool = True,
        visible_at: Sequence[str] = (),
        patience: float = 0,
        on_accepted: Callable[[AcceptedBatch, Sequence[ReadyDocument]], None] | None = None,
    ) -> None:
        self._client, self._size, self._patience = client, max(1, batch), patience
        self._wait = wait or bool(visible_at)
        self._on_accepted = on_accepted
        self.counts: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.visible: dict[str, int] = dict.fromkeys(visible_at, 0)
        self.open: dict[str, Open] = {}
        self.under_way: Sequence[ReadyDocument] = ()
        self.requests = 0
        self._unseen: dict[str, list[tuple[int, str, int]]] = {node: [] for node in visible_at}
        self._followers: Sequence[str] = ()  # nodes that follow
        self._last_progress = self._looked = time.monotonic()

    def publish(self, documents: Iterable[ReadyDocument | DocumentTrouble]) -> Iterator[Step]:
        """Send everything, and yield each acceptance, each refusal, and requests as they make progress.

        NotAuthorised, NotFound, Unreachable and Failed end the run; the server goes on with what it accepted before.
        """
        for ready in self._batches(documents):
            if isinstance(ready, DocumentTrouble):
                yield self._count(ready)
                continue
            yield from self._send(ready)
            yield from self._follow(MOST_OPEN)
            yield from self._look_at_nodes(every=FIRST_LOOK * 10)
        yield from self._follow(0)
        yield from self._follow_to_nodes()

    def follow(self, batch: AcceptedBatch) -> None:
        """Follow a request of an earlier run too."""
        self.open[batch.id] = Open(batch, [f"request {batch.id}, item {n}" for n in range(batch.total)])
        self.counts.update(sent=batch.total, accepted=batch.total)
        self.requests += 1

    # --- sending ---

    def _batches(
        self, documents: Iterable[ReadyDocument | DocumentTrouble]
    ) -> Iterator[list[ReadyDocument] | DocumentTrouble]:
        waiting: dict[str, _Batch] = {}
        for document in documents:
            self.counts["read"] += 1
            if isinstance(document, DocumentTrouble):
                yield document
                continue
            batch = waiting.setdefault(document.collection, _Batch())
            if batch.entries and batch.size + len(document.text) > BATCH_BYTES:
                yield batch.entries
                batch = waiting[document.collection] = _Batch()
            batch.entries.append(document)
            batch.size += len(document.text) + 1
            if len(batch.entries) >= self._size:
                yield waiting.pop(document.collection).entries
            elif len(waiting) > 1 and sum(each.size for each in waiting.values()) > MOST_WAITING_BYTES:
                yield waiting.pop(max(waiting, key=lambda name: waiting[name].size)).entries
        for batch in waiting.values():
            yield batch.entries

    def _send(self, batch: list[ReadyDocument]) -> Iterator[Step]:
        self.counts["sent"] += len(batch)
        pending = [batch]
        while pending:
            part = pending.pop()
            self.under_way = part
            try:
                accepted_batch = self._client.submit(part[0].collection, [entry.text for entry in part])
            except NotAuthorised as refusal:
                if refusal.status == 401 or not self.requests:
                    raise
                yield from (self._count(_trouble(entry, refusal)) for entry in part)
            except Invalid as refusal:
                if refusal.status not in JUDGED:
                    raise
                troubles, rest = sort_out(part, refusal)
                yield from map(self._count, troubles)
                pending += reversed(rest)
            else:
                self.under_way = ()
                yield self._accept(accepted_batch, part)
                if not self._wait and accepted_batch.rejected:
                    yield from self._refused_of(accepted_batch.id, [entry.place for entry in part])

    def _accept(self, batch: AcceptedBatch, part: Sequence[ReadyDocument]) -> AcceptedBatch:
        self.requests += 1
        self.counts["accepted"] += batch.total - batch.rejected
        if self._on_accepted is not None:
            self._on_accepted(batch, part)
        if self._wait:
            self.open[batch.id] = Open(batch, [entry.place for entry in part])
        self._last_progress = time.monotonic()
        return batch

    def _count(self, trouble: DocumentTrouble) -> DocumentTrouble:
        self.counts[trouble.status] += 1
        return trouble

    def _refused_of(self, request: str, places: Sequence[str]) -> Iterator[DocumentTrouble]:
        for status in ("rejected", "failed"):
            for result in self._client.results(request, status=status):
                yield self._count(
                    DocumentTrouble(places[result.n], result.id, status, result.type or "unknown", result.detail or "",
                            result.findings, request)
                )  # fmt: skip

    # --- following ---

    def _follow(self, most: int) -> Iterator[Step]:
        """Look at the oldest open request until at most so many are open; at least once, but not all the time."""
        pause = FIRST_LOOK
        while self.open:
            if len(self.open) <= most and time.monotonic() - self._looked < FIRST_LOOK * 4:
                return
            self._looked = time.monotonic()
            has_moved = yield from self._look()
            if has_moved:
                pause, self._last_progress = FIRST_LOOK, time.monotonic()
                continue
            if len(self.open) <= most:
                return
            self._check_patience("accepted everything sent")
            time.sleep(pause)
            pause = min(pause * 1.5, LONGEST_LOOK)

    def _look(self) -> Generator[Step, None, bool]:
        """Look at the oldest open request, and return whether it made progress."""
        id, opened = next(iter(self.open.items()))
        request = self._client.request(id)
        finals = Counter({"done": request.counts.get("done", 0)})
        has_moved = bool(finals - opened.counts)
        self.counts += finals - opened.counts
        opened.counts = finals
        if request.is_final and (request.is_announced or not self.visible):
            del self.open[id]
            self.outcomes.update(request.outcomes)
            if request.counts.get("rejected") or request.counts.get("failed"):
                yield from self._refused_of(id, opened.places)
            yield request  # last: its refusals are kept before it counts as settled
            self._note_position(request)
            return True
        if has_moved:
            yield request
        return has_moved

    def _check_patience(self, so_far: str) -> None:
        if self._patience and time.monotonic() - self._last_progress > self._patience:
            raise Stalled(f"{self._client.url} {so_far}, and nothing moved for {self._patience:g} s")

    # --- visibility ---

    def _note_position(self, request: Request) -> None:
        count = request.counts.get("done", 0)
        for node, unseen in self._unseen.items():
            if request.position is None:
                self.visible[node] += count
            else:
                insort(unseen, (request.position, request.id, count))

    def _look_at_nodes(self, *, every: float = 0.0) -> Generator[Step, None, bool]:
        """Return whether a node shows more than before.

        A node that shows a position shows all before it, so a few looks are enough: at the newest request, the middle
        one, the oldest.
        """
        if not any(self._unseen.values()) or time.monotonic() - self._looked < every:
            return False
        self._looked, has_moved = time.monotonic(), False
        for node, unseen in self._unseen.items():
            for index in sorted({len(unseen) - 1, len(unseen) // 2, 0}, reverse=True) if unseen else ():
                request = self._client.request(unseen[index][1])
                self._followers = sorted(request.visible)
                if request.is_visible_at(node):
                    self.visible[node] += sum(count for _, _, count in unseen[: index + 1])
                    del unseen[: index + 1]
                    self._last_progress, has_moved = self._looked, True
                    yield request
                    break
        return has_moved

    def _follow_to_nodes(self) -> Iterator[Step]:
        pause = FIRST_LOOK
        while any(self._unseen.values()):
            if (yield from self._look_at_nodes()):
                pause = FIRST_LOOK
                continue
            waiting = ", ".join(node for node, unseen in self._unseen.items() if unseen)
            followers = ", ".join(self._followers) or "none"
            reason = f"published everything, {waiting} shows not all of it (nodes that follow: {followers})"
            self._check_patience(reason)
            time.sleep(pause)
            pause = min(pause * 1.5, LONGEST_LOOK)


def sort_out(
    part: Sequence[ReadyDocument], refusal: Refusal
) -> tuple[list[DocumentTrouble], list[list[ReadyDocument]]]:
    """Return the refused items of a batch that was refused as a whole, and the batches to send again.

    The pointer of a finding begins with the number of the item in the batch. If no finding names an item, a single item
    is the refused one, and more are sent again in halves.
    """
    by_item: dict[int, list[Finding]] = {}
    for finding in refusal.findings:
        place = PLACE.match(finding.pointer)
        if place and int(place[1]) < len(part):
            own = replace(finding, pointer=finding.pointer[place.end() :])
            by_item.setdefault(int(place[1]), []).append(own)
    faulty = {n: own for n, own in by_item.items() if any(one.severity is Severity.ERROR for one in own)}
    if faulty:
        troubles = [_trouble(part[n], refusal, own) for n, own in sorted(faulty.items())]
        rest = [entry for n, entry in enumerate(part) if n not in faulty]
        return troubles, [rest] if rest else []
    if len(part) == 1:
        return [_trouble(part[0], refusal, refusal.findings)], []
    middle = len(part) // 2
    return [], [list(part[:middle]), list(part[middle:])]


def _trouble(entry: ReadyDocument, refusal: Refusal, findings: Sequence[Finding] | None = None) -> DocumentTrouble:
    """Return the trouble of one item: its own findings say more than the refusal of the batch."""
    detail = refusal.detail
    if findings:
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        detail = findings[0].message + more
    return DocumentTrouble(entry.place, entry.id, "rejected", refusal.type, detail, tuple(findings or ()))
