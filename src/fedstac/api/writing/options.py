"""The options of a write: what its client asks for beside the documents. Headers and query carry them over HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final
from uuid import UUID

from fedstac.api.call import Call, CallProgress
from fedstac.api.http import preconditions
from fedstac.api.people import notifications
from fedstac.api.route import DRY_RUN
from fedstac.api.writing import idempotency
from fedstac.db.requests import Key
from fedstac.domain.errors import BadRequest, PreconditionRequired
from fedstac.domain.retraction import LONGEST_TEXT

LONGEST_USER_AGENT: Final = 200


async def _no_key() -> Key | None:
    return None


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How a write is done. The defaults are those of a caller that is no client over HTTP."""

    dry_run: bool = False  # try everything, store nothing
    only_new: bool = False  # refuse a dataset that is here already
    expected: Sequence[str] | None = None  # entity tags, one of which the dataset has; None: any state
    override: str | None = None  # the reason for other files under the same version
    find_key: Callable[[], Awaitable[Key | None]] = _no_key  # the Idempotency-Key with the digest of the body
    notify: Sequence[str] = ()  # destinations that get the result
    retry_of: UUID | None = None  # the request whose refused items are sent again
    user_agent: str | None = None
    request_id: str = ""  # of logs and of the audit log
    traceparent: str | None = None  # of the events that come of it
    progress: CallProgress = field(default_factory=CallProgress)  # what the row of a refusal says

    def retrying(self, request: UUID, *, only_new: bool) -> WriteOptions:
        """Return the options of a write that sends the refused items of a request again."""
        return replace(self, retry_of=request, only_new=self.only_new or only_new)


def options_of(call: Call) -> WriteOptions:
    """Return the options that a call names. BadRequest where one of them cannot be understood."""
    headers = call.headers
    return WriteOptions(
        dry_run=is_dry_run(call),
        only_new=preconditions.wants_new(headers),
        expected=preconditions.expected(headers),
        override=override_of(call),
        find_key=partial(idempotency.key_of, call) if idempotency.HEADER in headers else _no_key,
        notify=headers.getlist(notifications.HEADER),
        user_agent=headers.get("user-agent", "")[:LONGEST_USER_AGENT] or None,
        request_id=call.request_id,
        traceparent=call.traceparent,
        progress=call.progress,
    )


def options_of_change(call: Call) -> WriteOptions:
    """Return the options of a change. PreconditionRequired where the settings want If-Match and it is missing."""
    options = options_of(call)
    if options.expected is None and call.node.settings.require_if_match:
        raise PreconditionRequired("this change has no If-Match; send it with the ETag that GET gave")
    return options


def is_dry_run(call: Call) -> bool:
    """Tell whether nothing is to be stored. BadRequest where `dry_run` is neither true nor false."""
    return is_wanted(call, DRY_RUN)


def is_wanted(call: Call, name: str) -> bool:
    """Return whether a parameter is true. BadRequest where it is neither true nor false."""
    if not call.query_string:
        return False
    value = call.query_params.get(name, "false").lower()
    if value not in ("true", "false"):
        raise BadRequest(f"{name}={value[:20]!r} is neither true nor false")
    return value == "true"


def override_of(call: Call) -> str | None:
    """Return the reason in the header, which is UTF-8 whatever the name of its bytes in HTTP."""
    reason = call.headers.get("fedstac-override", "").encode("latin-1").decode(errors="replace")
    return reason[:LONGEST_TEXT] or None
