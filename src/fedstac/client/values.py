"""What the server says, as values."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

from fedstac.client.transport import no_node, request_url_of, value_of
from fedstac.domain.errors import Finding

SHA256 = re.compile(r"1220([0-9a-fA-F]{64})")  # as a multihash: the kind, the length, the digest
FINAL = frozenset(("done", "partly", "rejected", "failed"))


def _shown_status(status: str, total: int, cancelled: int) -> str:
    return "cancelled" if status == "rejected" and cancelled == total else status


@dataclass(frozen=True, slots=True)
class AcceptedBatch:
    """An accepted batch: the request to follow, its address, its number of items, how many are rejected already."""

    id: str
    url: str
    total: int
    rejected: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it stands.

    counts: items by status (queued, done, rejected, failed). outcomes: items by what was done (new, newer, older,
    updated, identical, …). warned: items that are done, with warnings. position: its last event's place in the feed,
    once it has one. visible: for every node that acknowledges, since when it shows everything of this request; None:
    not yet.
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
    warned: int = 0

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Request:
        return cls(
            id=body["id"], status=body["status"], collection=body["collection"], total=body["total"],
            counts=body["counts"], outcomes=body["outcomes"], unchanged=body["unchanged"], position=body["position"],
            visible={entry["node"]: entry["since"] for entry in body["visible"]}, document=body,
            warned=body.get("warned", 0),
        )  # fmt: skip

    @property
    def shown_status(self) -> str:
        """The status in one word for people: `cancelled` where all of it was, which counts as rejected."""
        return _shown_status(self.status, self.total, self.outcomes.get("cancelled", 0))

    @property
    def is_final(self) -> bool:
        return self.status in FINAL

    @property
    def is_announced(self) -> bool:
        """Whether it is final and its events, if it has any, stand in the feed."""
        return self.is_final and (self.position is not None or self.unchanged or not self.counts.get("done"))

    def is_visible_at(self, node: str) -> bool:
        """Return whether the node shows everything of it; what changed nothing is visible already."""
        if not self.is_announced:
            return False
        return self.position is None or self.visible.get(node) is not None


@dataclass(frozen=True, slots=True)
class RequestSummary:
    """One's own request in a list."""

    id: str
    status: str
    action: str
    collection: str
    total: int
    counts: Mapping[str, int]
    created: str
    cancelled: int = 0

    @property
    def shown_status(self) -> str:
        """The status in one word for people: `cancelled` where all of it was, which counts as rejected."""
        return _shown_status(self.status, self.total, self.cancelled)


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

    @property
    def shown_status(self) -> str:
        """The status for people: an item that was cancelled counts as rejected, and was not refused."""
        return "cancelled" if self.type == "cancelled" else self.status


@dataclass(frozen=True, slots=True)
class FeedPage:
    """Events in the order of the log, and the cursor with which to go on."""

    events: tuple[Mapping[str, Any], ...]
    cursor: str

    @classmethod
    def read(cls, response: httpx.Response) -> FeedPage:
        """Read an answer of GET /events. Failed if it is none."""
        events = value_of(response)
        if not isinstance(events, list) or "x-cursor" not in response.headers:
            raise no_node(f"{request_url_of(response)} did not answer with a page of events")
        return cls(tuple(events), response.headers["x-cursor"])


@dataclass(frozen=True, slots=True)
class Head:
    """Where a feed ends, and the position that each node has acknowledged."""

    origin: str
    cursor: str
    nodes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset as it is served, and the ETag of what was seen (None where a search found it)."""

    document: Mapping[str, Any]
    etag: str | None = None

    @property
    def id(self) -> str:
        return str(self.document["id"])

    @property
    def collection(self) -> str:
        return str(self.document["collection"])

    @property
    def properties(self) -> Mapping[str, Any]:
        properties: Mapping[str, Any] = self.document["properties"]
        return properties

    @property
    def base_id(self) -> str | None:
        """The id without its version; None where ids have none."""
        base_id = self.properties.get("base_id")
        return base_id if isinstance(base_id, str) else None

    @property
    def version(self) -> str:
        return str(self.properties.get("version", ""))

    @property
    def state(self) -> str:
        """published, retracted."""
        return str(self.properties.get("fedstac:state", ""))

    @property
    def is_latest(self) -> bool:
        return self.properties.get("latest") is True

    @property
    def files(self) -> list[File]:
        """Every file at every node, the original first. A file has a checksum or a size; a retracted one shows none."""
        files: list[File] = []
        for key, asset in self.document["assets"].items():
            if "file:checksum" not in asset and "file:size" not in asset:
                continue
            path = _path_of(self.id, asset, key)
            places = {str(asset.get("alternate:name", "the original")): asset, **(asset.get("alternate") or {})}
            for node, entry in places.items():
                size, checksum = entry.get("file:size", asset.get("file:size")), entry.get("file:checksum")
                checksum = checksum or asset.get("file:checksum")
                files.append(File(self.id, key, node, str(entry.get("href", "")), path, size, checksum))
        return files

    @property
    def replicas(self) -> list[Replica]:
        """Copies at other nodes, by node; none of a retracted dataset."""
        hrefs: dict[str, dict[str, str]] = {}
        for key, asset in self.document["assets"].items():
            for node, entry in (asset.get("alternate") or {}).items():
                hrefs.setdefault(node, {})[key] = str(entry.get("href", ""))
        counts = self.properties.get("fedstac:replicas") or {}
        return [
            Replica(node, entry.get("files", 0), entry.get("of", 0), bool(entry.get("complete")), hrefs.get(node, {}))
            for node, entry in sorted(({node: {} for node in hrefs} | counts).items())
        ]


@dataclass(frozen=True, slots=True)
class File:
    """A file of a dataset at a node: the original, or a copy. `path` is where to put it, "" where none is safe."""

    dataset: str
    asset: str
    node: str
    href: str
    path: str
    size: int | None
    checksum: str | None  # multihash in hexadecimal

    @property
    def sha256(self) -> str | None:
        """The SHA-256 in hexadecimal; None where the checksum is of another kind."""
        match = SHA256.fullmatch(self.checksum or "")
        return match[1].lower() if match else None

    @property
    def is_address(self) -> bool:
        """Whether it can stand on a line of its own: one word of printable characters."""
        return bool(self.href) and self.href.isprintable() and not any(char.isspace() for char in self.href)

    @property
    def is_web(self) -> bool:
        """Whether common downloaders fetch it."""
        return self.is_address and self.href.lower().startswith(("https://", "http://", "ftp://"))


def _path_of(dataset: str, asset: Mapping[str, Any], key: str) -> str:
    """Return where to put a file, below the folder for downloads; "" if the dataset names an unsafe path."""
    local_path = asset.get("file:local_path")
    name = posixpath.basename(unquote(urlsplit(str(asset.get("href", ""))).path)) or key
    path = local_path if isinstance(local_path, str) and local_path else f"{dataset}/{name}"
    parts = path.split("/")
    if not path.isprintable() or "\\" in path or any(part in ("", ".", "..") or part[0] == "-" for part in parts):
        return ""
    return path


@dataclass(frozen=True, slots=True)
class Replica:
    """A node's copies of a dataset: of how many of its files, and their addresses by asset."""

    node: str
    files: int
    of: int
    is_complete: bool
    hrefs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ChangeResult:
    """What became of a change: retracted, updated, … or identical where nothing was different; warnings in findings.

    Of a dry run what would become of it; None where what is under way for the dataset decides.
    """

    id: str
    outcome: str | None
    request: str | None
    findings: tuple[Finding, ...] = ()
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class DocumentVerdict:
    """The server's judgement of a document."""

    id: str
    valid: bool
    cv_version: str | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class DryRunResult:
    """What would become of a document: an outcome, and where it is `rejected` the problem's type and detail.

    Of an update: JSON pointers to what would change, and who changed the dataset last (actor, action, at).
    """

    id: str
    outcome: str
    type: str | None
    detail: str | None
    findings: tuple[Finding, ...]
    changed: tuple[str, ...] = ()
    last_change: Mapping[str, str] | None = None
