"""Summaries of collections: the values that their published datasets have, from the columns."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from fedstac.api.call import Services
from fedstac.columns import counts
from fedstac.columns.memory import PageQuestion
from fedstac.db.connections import Connection

MOST_VALUES: Final = 300  # of a property; one with more has no summary
FRESH_SECONDS: Final = 5.0  # for which values are not looked up again, unless a dataset is published no more
VALUE_BYTES: Final = 40  # that a value takes while a page is written


async def of_collections(services: Services, conn: Connection) -> Mapping[str, Mapping[str, list[Any]]]:
    """Return the values by collection and property; nothing where memory does not have them."""
    columns = services.columns
    if columns is None or not columns.is_ready:
        return {}
    values = await columns.count(
        conn, services.threads, PageQuestion({}), partial(counts.values_shown, MOST_VALUES), key="summaries",
        properties=list(columns.dictionaries.slots), seconds=FRESH_SECONDS,
    )  # fmt: skip
    return values or {}


def size_of(values: Mapping[str, list[Any]]) -> int:
    """Return about how many bytes values take."""
    return sum(map(len, values.values())) * VALUE_BYTES
