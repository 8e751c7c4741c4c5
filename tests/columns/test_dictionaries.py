"""What is kept of conditions and terms: never more than there is room for, and nothing of what callers invent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from fedstac.columns import dictionaries as module
from fedstac.columns.dictionaries import FALSE, TRUE, Dictionaries, Leaf, Place
from fedstac.db import columns as stored
from fedstac.db.columns import TERM, Term

NAME = "x:name"


def leaf(op: str, value: str) -> Leaf:
    return Leaf((TERM, NAME), orjson.dumps({"op": op, "args": [{"property": NAME}, value]}))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every condition that PostgreSQL is asked about be true of every entry."""

    async def truths(conn: Any, place: Place, predicates: Sequence[Any], codes: Sequence[int]) -> dict[int, list[bool]]:
        return {code: [True] * len(predicates) for code in codes}

    monkeypatch.setattr(stored, "truths", truths)


@pytest.mark.usefixtures("server")
async def test_an_answer_is_completed_though_another_one_took_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    dictionaries: Dictionaries = Dictionaries()
    conn: Any = None
    dictionaries.add_terms([Term(1, NAME, '"one"')])
    older = leaf("like", "o%")
    await dictionaries.verdicts(conn, [older])
    dictionaries.add_terms([Term(2, NAME, '"two"')])
    monkeypatch.setattr(module, "MOST_KEPT_BYTES", dictionaries.answer_bytes + 100)
    newer = leaf("=", "two")
    answers = await dictionaries.verdicts(conn, [older, newer])
    assert answers[older].table[:3].tolist() == [TRUE, TRUE, TRUE]
    assert answers[newer].table[1:3].tolist() == [FALSE, TRUE]
