"""Every reason for which fedstac refuses something: one class per reason that a caller can act on.

A class carries the HTTP status, a stable name (the last part of the problem type's URL, RFC 9457) and a title; an
instance carries the sentence that names the thing and the remedy, and all findings at once. ESGF's names are kept where
one exists (esgf-wire: stac-validation, item-does-not-exist, …).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Self
from uuid import UUID


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a document, where, and what would be right."""

    rule: str  # stable name of the rule, e.g. "id-template"
    pointer: str  # JSON pointer (RFC 6901) into what the caller sent; "" is the whole document
    message: str
    severity: Severity = Severity.ERROR
    suggestion: str | None = None

    def as_json(self) -> dict[str, str]:
        fields = {"rule": self.rule, "pointer": self.pointer, "message": self.message, "severity": self.severity.value}
        return fields | ({"suggestion": self.suggestion} if self.suggestion else {})

    @classmethod
    def from_json(cls, fields: Mapping[str, str]) -> Finding:
        return cls(**{**fields, "severity": Severity(fields["severity"])})  # type: ignore[arg-type]


def pointer(*steps: object) -> str:
    """Return the JSON pointer (RFC 6901) of these steps."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


def errors_in(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return the findings that refuse a document; warnings do not."""
    return tuple(finding for finding in findings if finding.severity is Severity.ERROR)


class Problem(Exception):
    """The root of everything that is refused. Never raised itself."""

    status: ClassVar[int] = 500
    name: ClassVar[str] = "unknown"
    title: ClassVar[str] = "The server failed"

    def __init__(self, detail: str, *, findings: Sequence[Finding] = (), retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.findings = tuple(findings)
        self.retry_after = retry_after

    def without_trace(self) -> Self:
        """Return this problem to be kept as a value. Its traceback would keep every local variable of its way."""
        self.__context__ = self.__cause__ = None
        return self.with_traceback(None)


class MalformedJson(Problem):
    """The body is not JSON as RFC 8259 has it, or holds what cannot be stored and given back equal."""

    status, name, title = 400, "malformed-json", "The body is not usable JSON"


class StacInvalid(Problem):
    """The document contradicts the STAC specification or the project's rules; every finding has its place."""

    status, name, title = 400, "stac-validation", "The document is not valid"


class BadRequest(Problem):
    """A parameter, header or search is not understood; the detail names it."""

    status, name, title = 400, "bad-request", "The request is not understood"


class Unauthenticated(Problem):
    """A bearer token is missing or unknown."""

    status, name, title = 401, "unauthenticated", "A valid token is needed"


class InvalidToken(Unauthenticated):
    """The token is malformed, expired, not valid yet, or of no identity provider that this node takes."""

    name, title = "invalid-token", "The token is not valid"


class InvalidTokenAudience(InvalidToken):
    """The token was issued for another service; log in for this one."""

    name, title = "invalid-token-audience", "The token is for another service"


class MissingPermission(Problem):
    """The caller is known, and may not do this."""

    status, name, title = 403, "missing-permission", "Not permitted"


class NotFound(Problem):
    """There is no such route or resource."""

    status, name, title = 404, "not-found", "Not found"


class ItemDoesNotExist(NotFound):
    """There is no such dataset in this collection."""

    name, title = "item-does-not-exist", "The dataset does not exist"


class ItemDeleted(Problem):
    """The dataset was deleted. Its id is never used again."""

    status, name, title = 410, "item-deleted", "The dataset was deleted"


class CollectionDoesNotExist(NotFound):
    """There is no such collection here."""

    name, title = "collection-does-not-exist", "The collection does not exist"


class BulkDoesNotExist(NotFound):
    """There is no such change of many datasets, or it is somebody else's."""

    name, title = "bulk-does-not-exist", "The change of many datasets does not exist"


class LoadDoesNotExist(NotFound):
    """There is no such full-state load, or it is somebody else's."""

    name, title = "load-does-not-exist", "The full-state load does not exist"


class RequestDoesNotExist(NotFound):
    """There is no such request, or it is somebody else's."""

    name, title = "request-does-not-exist", "The request does not exist"


class MethodNotAllowed(Problem):
    """The resource exists and does not take this method."""

    status, name, title = 405, "method-not-allowed", "The method is not allowed here"


class BodyTimeout(Problem):
    """The headers or the body arrive too slowly."""

    status, name, title = 408, "request-timeout", "The body arrives too slowly"


class Conflict(Problem):
    """The stored state does not allow it; the detail says what is in the way."""

    status, name, title = 409, "conflict", "In conflict with what is stored"


class MarkedForDeletion(Conflict):
    """The dataset is marked for deletion: nothing changes until it is unmarked. `deletion` is the entry's id."""

    name, title = "marked-for-deletion", "The dataset is marked for deletion"

    def __init__(
        self, detail: str, *, deletion: UUID | None = None, findings: Sequence[Finding] = (),
        retry_after: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(detail, findings=findings, retry_after=retry_after)
        self.deletion = deletion


class DeletionNotReady(MarkedForDeletion):
    """The dataset cannot be deleted yet; each finding names one thing that is missing."""

    name, title = "deletion-not-ready", "The dataset cannot be deleted yet"


class UnderQuarantine(Conflict):
    """The dataset is under quarantine; only those who decide about that change it."""

    name, title = "under-quarantine", "The dataset is under quarantine"


class BulkChanged(Conflict):
    """The datasets are no longer those that the preview showed: how many it showed, how many there are, and changed."""

    name, title = "bulk-changed", "The datasets have changed since they were shown"

    def __init__(
        self, detail: str, *, shown_count: int = 0, count: int = 0, changed_count: int = 0,
        findings: Sequence[Finding] = (), retry_after: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(detail, findings=findings, retry_after=retry_after)
        self.shown_count, self.count, self.changed_count = shown_count, count, changed_count


class LoadNotConfirmed(Conflict):
    """A full-state load clears more than a tenth of the datasets, or all of them, and nobody confirmed the number."""

    name, title = "load-not-confirmed", "The load clears many datasets"

    def __init__(
        self, detail: str, *, cleared: int = 0, findings: Sequence[Finding] = (), retry_after: int | None = None
    ) -> None:
        super().__init__(detail, findings=findings, retry_after=retry_after)
        self.cleared = cleared
        self.load: UUID | None = None  # that was compared, and can be applied


class ItemAlreadyExists(Conflict):
    """The same version is there already with other files, or another document has this id."""

    name, title = "item-already-exists", "The dataset exists already"


class CollectionAlreadyExists(Conflict):
    """A collection of this id is there already."""

    name, title = "collection-already-exists", "The collection exists already"


class CollectionNotEmpty(Conflict):
    """Only an empty collection can be deleted."""

    name, title = "collection-not-empty", "The collection is not empty"


class CollectionClosing(Conflict):
    """The collection is being deleted with its datasets: nothing is put into it. `cascade` names that deletion."""

    name, title = "collection-closing", "The collection is being deleted"

    def __init__(
        self, detail: str, *, collection: str = "", cascade: UUID | None = None, findings: Sequence[Finding] = (),
        retry_after: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(detail, findings=findings, retry_after=retry_after)
        self.collection, self.cascade = collection, cascade


class ForeignOrigin(Conflict):
    """The lineage belongs to another node."""

    name, title = "foreign-origin", "The dataset belongs to another node"


class Cancelled(Conflict):
    """The request was cancelled before this item of it was worked on."""

    name, title = "cancelled", "The request was cancelled"


class PreconditionFailed(Problem):
    """A dataset, a collection or rules are not as the header If-Match or If-None-Match says."""

    status, name, title = 412, "precondition-failed", "It is not as the request expects"


class CursorGone(Problem):
    """The feed no longer holds what the cursor asks for, or never did; take a snapshot."""

    status, name, title = 410, "cursor-gone", "The feed does not reach back that far"

    def __init__(
        self,
        detail: str,
        *,
        findings: Sequence[Finding] = (),
        retry_after: int | None = None,
        earliest: str | None = None,
    ) -> None:
        super().__init__(detail, findings=findings, retry_after=retry_after)
        self.earliest = earliest  # the first cursor that the feed goes on from


class BodyTooLarge(Problem):
    """The body is over the limit, counted on the wire."""

    status, name, title = 413, "body-too-large", "The body is too large"


class Misdirected(Problem):
    """The datasets of this project and institution are written at another node; `home` is its address."""

    status, name, title = 421, "misdirected", "Another node is the home of this dataset"

    def __init__(
        self,
        detail: str,
        *,
        findings: Sequence[Finding] = (),
        retry_after: int | None = None,
        node: str | None = None,
        home: str | None = None,
    ) -> None:
        super().__init__(detail, findings=findings, retry_after=retry_after)
        self.node, self.home = node, home


class UnsupportedMediaType(Problem):
    """The Content-Type or Content-Encoding is not taken here."""

    status, name, title = 415, "unsupported-media-type", "The media type is not supported"


class IdempotencyKeyReused(Problem):
    """Another body was sent under this Idempotency-Key before."""

    status, name, title = 422, "idempotency-key-reused", "The Idempotency-Key was used for something else"


class PreconditionRequired(Problem):
    """This node wants the header If-Match with every change."""

    status, name, title = 428, "precondition-required", "If-Match is needed"


class TooManyRequests(Problem):
    """The caller has too much under way; the answer says when to try again."""

    status, name, title = 429, "too-many-requests", "Too much at once"


class HeadersTooLarge(Problem):
    """The headers are over the limit."""

    status, name, title = 431, "headers-too-large", "The headers are too large"


class InternalError(Problem):
    """A fault of this server's; it is logged under the request's id and never described to the caller."""

    status, name, title = 500, "unknown", "The server failed"


class Unavailable(Problem):
    """The server cannot do it now; the answer says when to try again."""

    status, name, title = 503, "unavailable", "Not available just now"


class TakesTooLong(Unavailable):
    """The work for this request is not done in the time that every request has."""

    name, title = "takes-too-long", "The request takes too long"


def problems() -> Iterator[type[Problem]]:
    """Yield every class of problem there is, for the pages that explain them and the contracts test."""
    pending = [Problem]
    while pending:
        for sub in pending.pop().__subclasses__():
            pending.append(sub)
            yield sub
