"""Whole numbers in parameters: ASCII digits only, where int() takes 1_0, +1 and digits of other scripts."""

from __future__ import annotations

import re

from starlette.datastructures import QueryParams

from fedstac.domain.errors import BadRequest

DIGITS = re.compile(r"[0-9]+")
MOST_DIGITS = 18


def whole(parameters: QueryParams, name: str, *, default: int, most: int) -> int:
    """Return the number in a query parameter, `most` where it is larger. BadRequest where it is no whole number."""
    text = parameters.get(name)
    if text is None:
        return default
    if not DIGITS.fullmatch(text):
        raise BadRequest(f"{name}={text[:20]!r} is not a whole number, 0 or more; send one, or leave it out")
    return min(value(text), most)


def value(digits: str) -> int:
    """Return the number that digits write. Of very many digits it is some very large one."""
    return int(digits.lstrip("0")[:MOST_DIGITS] or 0)
