"""Which members differ between two documents of one dataset, as JSON pointers that people read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson

from fedstac.domain.rules import pointer

MOST: Final = 50  # pointers; a document that differs in more is another document


def changed_members(before: str, after: str) -> tuple[str, ...]:
    """Return the members that differ between two documents, given as JSON text: at most MOST, in their order.

    Properties are named one by one, assets by asset and member; other members as a whole. Values are compared by their
    JSON, as digests do: to Python 1, 1.0 and true are the same.
    """
    places = _between(orjson.loads(before), orjson.loads(after))
    return tuple(place for place, _ in zip(places, range(MOST), strict=False))


def _between(before: Mapping[str, Any], after: Mapping[str, Any], *steps: str) -> Iterator[str]:
    for name in dict.fromkeys((*before, *after)):
        one, other = before.get(name), after.get(name)
        if _text(one) == _text(other) and (name in before) == (name in after):
            continue
        is_opened = steps == ("assets",) or (not steps and name in ("properties", "assets"))
        if is_opened and isinstance(one, dict) and isinstance(other, dict):
            yield from _between(one, other, *steps, name)
        else:
            yield pointer(*steps, name)


def _text(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
