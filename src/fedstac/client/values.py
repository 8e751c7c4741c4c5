"""What the server says, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedstac.domain.errors import Finding

FINAL = frozenset(("done", "partly", "rejected", "failed"))


@dataclass(frozen=True, slots=True)
class Submitted:
    """An accepted batch: the request to follow, its address, its number of items, how many are rejected already."""

    id: str
    url: str
    total: int
    rejected: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it stands.

    counts: items by status (queued, done, rejected, failed). outcomes: items by what was done (new, newer, older,
    updated, identical, …). position: its last event's place in the feed, once it has one. visible: for every node that
    acknowledges, since when it shows everything of this request; None: not yet.
    """

    id: str
    status: str
    collection: str
    total: int
    counts: Mapping[str, int]
    outcomes: Mapping[str, int]
    unchanged: bool
    position: int | None
    visible: Mapping[str, str | None]
    document: Mapping[str, Any] = field(repr=False)

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Request:
        return cls(
            id=body["id"], status=body["status"], collection=body["collection"], total=body["total"],
            counts=body["counts"], outcomes=body["outcomes"], unchanged=body["unchanged"], position=body["position"],
            visible={entry["node"]: entry["since"] for entry in body["visible"]}, document=body,
        )  # fmt: skip

    @property
    def is_final(self) -> bool:
        return self.status in FINAL

    @property
    def is_announced(self) -> bool:
        """Whether it is final and its events, if it has any, stand in the feed."""
        return self.is_final and (self.position is not None or self.unchanged or not self.counts.get("done"))

    def is_visible_at(self, node: str) -> bool:
        """Whether the node shows everything of it; what changed nothing is visible already."""
        if not self.is_announced:
            return False
        return self.position is None or self.visible.get(node) is not None


@dataclass(frozen=True, slots=True)
class ItemResult:
    """What became of item number `n` of a batch; `type` and `detail` where it was refused, warnings in findings."""

    n: int
    id: str
    status: str
    outcome: str | None
    type: str | None
    detail: str | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class FeedPage:
    """Events in the order of the log, and the cursor with which to go on."""

    events: tuple[Mapping[str, Any], ...]
    cursor: str


@dataclass(frozen=True, slots=True)
class Head:
    """Where a feed ends, and the position that each node has acknowledged."""

    origin: str
    cursor: str
    nodes: Mapping[str, str]
