"""Rows of fedstac.facet: a statement that writes some, and rows as PostgreSQL sends them, for tables of no database."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedstac.columns.table import SENT, Array

# $1 numbers, $2 `shown`, $3 `size`
PUT = """
    INSERT INTO fedstac.facet (n, collection, shown, starts, ends, updated, footprint, size, files, codes)
    SELECT n, 1 + n % 3, $2, now(), now(), clock_timestamp(), 0, $3, 1, array_fill((n % 5)::int, ARRAY[24])
    FROM unnest($1::bigint[]) n
    ON CONFLICT (n) DO UPDATE SET changed = pg_current_xact_id(), shown = EXCLUDED.shown, size = EXCLUDED.size"""


def rows(numbers: Sequence[int], rng: random.Random, *, starts: int = 50) -> Array:
    """Return rows with these numbers; few different starts, for many to be alike."""
    made = np.zeros(len(numbers), SENT)
    made["n"] = numbers
    made["changed"] = 1
    made["collection"] = 1
    made["shown"] = [rng.choice((0, 1, 1, 5, 5, 2)) for _ in numbers]
    for name in ("starts", "ends", "updated"):
        made[name] = [rng.randrange(starts) - starts // 2 for _ in numbers]
    return made


def values(row: Any) -> dict[str, int]:
    """Return a row as Python has it."""
    return {name: int(row[name]) for name in ("n", "collection", "shown", "starts", "ends", "updated")}
