"""The audit log as a chain: what a row is, how rows are linked, and how a broken link is found. Pure.

A row's hash is the SHA-256 of the hash before it and the row's canonical text: a JSON array of its columns in the order
of COLUMNS, as PostgreSQL's json_build_array writes it (migrations/0006_audit.sql, audit_text). Who knows one hash knows
all rows up to it: an export ends with a checkpoint, and whoever keeps it can tell later whether the past was changed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from typing import Any

import orjson

GENESIS = bytes(32)
COLUMNS = (
    "pos", "id", "at", "actor", "issuer", "action", "collection", "dataset", "request", "correlation", "outcome",
    "rule", "items", "detail", "before", "after",
)  # fmt: skip
_columns = attrgetter(*COLUMNS)


class AuditDecision(StrEnum):
    """Whether an action was done."""

    ALLOWED = "allowed"
    REFUSED = "refused"
    FAILED = "failed"  # by a fault of the server's


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the log as it is shown and exported. `pos` and `hash` are None until the sequencer has been there."""

    pos: int | None
    id: int
    at: str  # UTC, RFC 3339 with microseconds
    actor: str
    issuer: str | None
    action: str
    collection: str
    dataset: str
    request: str | None
    correlation: str | None
    outcome: str
    rule: str | None
    items: int
    detail: str | None
    before: str | None  # SHA-256, hexadecimal
    after: str | None
    hash: str | None

    @property
    def decision(self) -> AuditDecision:
        if self.outcome == "rejected":
            return AuditDecision.REFUSED
        return AuditDecision.FAILED if self.outcome == "failed" else AuditDecision.ALLOWED

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in (*COLUMNS, "hash")}


@dataclass(frozen=True, slots=True)
class ChainHead:
    """A place in the chain and the hash of everything up to it."""

    pos: int
    hash: bytes


START = ChainHead(0, GENESIS)


class ChainBroken(Exception):
    """The log is not what it was. `pos` is the first place at which that shows."""

    def __init__(self, pos: int, what: str) -> None:
        super().__init__(f"the audit log is broken at position {pos}: {what}")
        self.pos, self.what = pos, what


class NotAnExport(Exception):
    """A file is no export of the audit log; the message says what is wrong with it."""


def link(head: ChainHead, row: Row) -> ChainHead:
    """Return the head after one more row. ChainBroken unless the row follows, whole and unchanged."""
    expected = head.pos + 1
    if row.pos != expected:
        raise ChainBroken(expected, f"the next row is that of position {row.pos}: something was removed or moved")
    linked = hashlib.sha256(head.hash + canonical(row)).digest()
    if row.hash != linked.hex():
        raise ChainBroken(expected, f"row {row.id} is not the one that was written here, or follows another")
    return ChainHead(expected, linked)


def canonical(row: Row) -> bytes:
    """Return the text that is hashed."""
    return json.dumps(_columns(row), ensure_ascii=False).encode("utf-8", "surrogatepass")


# --- exports: a line with the head before, a line a row, a line with the head after


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A head with where and when it was taken, for keeping elsewhere; signed where the node has a key for it."""

    node: str
    head: ChainHead
    at: str
    signature: str | None = None

    def _text(self) -> bytes:
        return json.dumps(["fedstac audit", self.node, self.head.pos, self.head.hash.hex(), self.at]).encode()

    def signed(self, key: str) -> Checkpoint:
        """Return the checkpoint with an HMAC-SHA-256 by this key; as it is where the key is empty."""
        if not key:
            return self
        return Checkpoint(self.node, self.head, self.at, hmac.digest(key.encode(), self._text(), "sha256").hex())

    def is_signed_by(self, key: str) -> bool:
        return hmac.compare_digest(self.signed(key).signature or "", self.signature or "")

    def as_json(self) -> dict[str, Any]:
        return {
            "checkpoint": {"node": self.node, "pos": self.head.pos, "hash": self.head.hash.hex(), "at": self.at},
            "hmac-sha256": self.signature,
        }


@dataclass(frozen=True, slots=True)
class VerifiedExport:
    """An export that holds: how many rows, and its two ends."""

    rows: int
    opening: ChainHead
    closing: Checkpoint


def verify_export(lines: Iterable[bytes], *, key: str = "") -> VerifiedExport:
    """Follow an export from its first line to its last. ChainBroken, or NotAnExport where it is cut off or no export.

    With a key the checkpoint's signature has to be the key's.
    """
    values = _values(lines)
    opening = next(values, None)
    if not isinstance(opening, ChainHead):
        raise NotAnExport("the first line does not say where the export begins")
    head, rows = opening, 0
    for value in values:
        match value:
            case Row():
                head, rows = link(head, value), rows + 1
            case Checkpoint():
                _check_end(value, head, key)
                if next(values, None) is not None:
                    raise NotAnExport("there is something behind the checkpoint")
                return VerifiedExport(rows, opening, value)
            case ChainHead():
                raise NotAnExport("a second beginning stands in the middle")
    raise NotAnExport(f"the checkpoint at the end is missing: the file is cut off after position {head.pos}")


def _check_end(checkpoint: Checkpoint, head: ChainHead, key: str) -> None:
    if checkpoint.head != head:
        raise ChainBroken(head.pos, f"the checkpoint is that of position {checkpoint.head.pos}, or of other rows")
    if key and not checkpoint.is_signed_by(key):
        raise ChainBroken(head.pos, "the checkpoint is not signed with this node's key")


def _values(lines: Iterable[bytes]) -> Iterator[ChainHead | Row | Checkpoint]:
    for n, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield _value(orjson.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise NotAnExport(f"line {n} is no line of an export of the audit log") from None


def _value(value: Mapping[str, Any]) -> ChainHead | Row | Checkpoint:
    if "begins" in value:
        return _head(value["begins"])
    if "checkpoint" in value:
        checkpoint = value["checkpoint"]
        return Checkpoint(str(checkpoint["node"]), _head(checkpoint), str(checkpoint["at"]), value["hmac-sha256"])
    return Row(**value)


def _head(value: Mapping[str, Any]) -> ChainHead:
    return ChainHead(int(value["pos"]), bytes.fromhex(value["hash"]))
