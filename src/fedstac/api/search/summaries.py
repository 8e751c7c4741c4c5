"""Summaries of collections: the values that their published datasets have, from the columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fedstac.api.call import Services

MOST_VALUES: Final = 300  # of a property; one with more has no summary
VALUE_BYTES: Final = 40  # that a value takes while a page is written


async def of_collections(services: Services) -> Mapping[str, Mapping[str, list[Any]]]:
    """Return the values by collection and property; nothing where memory does not have them."""
    columns = services.columns
    if columns is None or not columns.is_ready:
        return {}
    return await columns.values_shown(services.threads, MOST_VALUES)


def size_of(values: Mapping[str, list[Any]]) -> int:
    """Return about how many bytes values take."""
    return sum(map(len, values.values())) * VALUE_BYTES
