"""Conditions of requests: If-Match, If-None-Match and If-Modified-Since (RFC 9110, 13.1)."""

from __future__ import annotations

import re
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Final

from starlette.datastructures import Headers

from fedstac.domain.errors import BadRequest

# as GET gives it: the first half of a digest, and for a dataset what is shown beside it
ENTITY_TAG: Final = re.compile(r'"([0-9a-f]{32})(?:-[0-9a-f]+)?"')


def expected(headers: Headers) -> list[str] | None:
    """Return the digests that If-Match names, `*` for any; None without the header."""
    tags = headers.get("if-match")
    if tags is None:
        return None
    return ["*"] if tags.strip() == "*" else ENTITY_TAG.findall(tags)


def is_unchanged(headers: Headers, tag: str) -> bool:
    """Return whether If-None-Match names the entity tag: the reader has what would be served."""
    tags = {each.strip().removeprefix("W/") for each in headers.get("if-none-match", "").split(",")}
    return bool({tag, "*"} & tags)


def is_unmodified(headers: Headers, modified: datetime) -> bool:
    """Return whether nothing changed since the moment that If-Modified-Since names.

    It does not count beside If-None-Match, which tells more. A date that is none is ignored.
    """
    text = headers.get("if-modified-since")
    if text is None or "if-none-match" in headers:
        return False
    try:
        since = parsedate_to_datetime(text)
    except ValueError:
        return False
    return since.tzinfo is not None and modified.replace(microsecond=0) <= since


def wants_new(headers: Headers) -> bool:
    """Return whether `If-None-Match: *` says that nothing may be there yet. A write takes no other value."""
    tags = headers.get("if-none-match")
    if tags is None:
        return False
    if tags.strip() != "*":
        raise BadRequest("with a write If-None-Match is *: nothing may be there yet; for a version of it take If-Match")
    return True
