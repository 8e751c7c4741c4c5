"""SQL for free text, which comes checked from api/search/words.py: words side by side, joined by AND, OR, NOT.

`fedstac.plain` makes a stored text as plain as they are: case folded, one space for all that is no letter and no digit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fedstac.db.connections import Reader

MOST_KEYS = 2000  # datasets, with a text of their own that has some words, to be named one by one


def predicate(expression: Any, test: Callable[[Sequence[Any]], str]) -> str:
    """Return SQL for an expression; `test` returns SQL for the arguments of words: are they there?"""
    op, args = expression["op"], expression["args"]
    if op == "words":
        return test(args)
    parts = [predicate(arg, test) for arg in args]
    return f"(NOT {parts[0]})" if op == "not" else "(" + f" {op.upper()} ".join(parts) + ")"


async def keys(conn: Reader, texts: Sequence[str], collections: Sequence[str]) -> list[list[tuple[str, str]]] | None:
    """Return for each text the (collection, id) of datasets whose own texts have it; None for over MOST_KEYS in all."""
    rows = await conn.fetch(
        f"""SELECT t.place, i.collection, i.id FROM unnest($1::text[]) WITH ORDINALITY t (text, place),
                   LATERAL (SELECT collection, id FROM pgstac.items
                            WHERE private IS NOT NULL AND collection = ANY ($2::text[])
                              AND to_tsvector('simple', private ->> 'words') @@ phraseto_tsquery('simple', t.text)
                            LIMIT {MOST_KEYS + 1}) i
            LIMIT {MOST_KEYS + 1}""",
        texts, collections,
    )  # fmt: skip
    if len(rows) > MOST_KEYS:
        return None
    keys: list[list[tuple[str, str]]] = [[] for _ in texts]
    for row in rows:
        keys[row["place"] - 1].append((row["collection"], row["id"]))
    return keys
