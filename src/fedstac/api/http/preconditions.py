"""Conditions of requests: If-Match and If-None-Match (RFC 9110, 13.1)."""

from __future__ import annotations

import re
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


def wants_new(headers: Headers) -> bool:
    """Return whether `If-None-Match: *` says that nothing may be there yet. A write takes no other value."""
    tags = headers.get("if-none-match")
    if tags is None:
        return False
    if tags.strip() != "*":
        raise BadRequest("with a write If-None-Match is *: nothing may be there yet; for a version of it take If-Match")
    return True
