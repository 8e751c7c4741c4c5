"""Conditions of requests: If-Match and If-None-Match (RFC 9110, 13.1)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import Response

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


def tag_of(body: bytes) -> str:
    """Return the entity tag of a body: it tells it from every other one."""
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def serve(
    request: Headers, body: bytes, media_type: str, headers: Mapping[str, str], *, tag: str | None = None
) -> Response:  # fmt: skip
    """Answer with a body, or with 304 where the reader has it. Either has the headers, and the entity tag.

    tag: of the body, where it is known.
    """
    headers = {**headers, "ETag": tag or tag_of(body)}
    if is_unchanged(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=media_type)


def wants_new(headers: Headers) -> bool:
    """Return whether `If-None-Match: *` says that nothing may be there yet. A write takes no other value."""
    tags = headers.get("if-none-match")
    if tags is None:
        return False
    if tags.strip() != "*":
        raise BadRequest("with a write If-None-Match is *: nothing may be there yet; for a version of it take If-Match")
    return True
