"""Whole numbers in parameters: ASCII digits only, where int() takes 1_0, +1 and digits of other scripts."""

from __future__ import annotations

import re

from starlette.requests import Request

from fedstac.domain.errors import BadRequest

DIGITS = re.compile(r"[0-9]+")
MOST_DIGITS = 18


def whole(request: Request, name: str, *, default: int, most: int) -> int:
    """The number in a query parameter, `most` where it is larger. BadRequest where it is no whole number."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not DIGITS.fullmatch(text):
        raise BadRequest(f"{name}={text[:20]!r} is not a whole number, 0 or more; send one, or leave it out")
    return min(value(text), most)


def value(digits: str) -> int:
    """The number that digits write; of very many digits a very large one."""
    return int(digits.lstrip("0")[:MOST_DIGITS] or 0)
