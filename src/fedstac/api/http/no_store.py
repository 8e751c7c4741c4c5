"""Answers in JSON that nobody may keep: what they say can be otherwise the next moment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import orjson
from starlette.responses import Response

from fedstac.api.http import links

HEADERS: Final[Mapping[str, str]] = {"Cache-Control": "no-store"}


def answer(body: object, status: int = 200, **headers: str) -> Response:
    """Return an answer with a body that becomes JSON."""
    return Response(orjson.dumps(body), status, {**HEADERS, **headers}, links.JSON)
