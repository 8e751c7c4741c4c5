"""What is kept of conditions and terms: never more than there is room for, and nothing of what callers invent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import orjson
import pytest

from fedstac.columns import dictionaries as module
from fedstac.columns.dictionaries import FALSE, NULL, TRUE, UNDECIDED, UNKNOWN, Dictionaries, Leaf, Place
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


async def test_nothing_is_kept_of_names_that_callers_make_up() -> None:
    dictionaries, conn = Dictionaries(), cast(Any, None)
    dictionaries.add_terms([Term(1, NAME, '"one"')])
    for n in range(50):
        name = f"x:made_up_{n}"
        made_up = Leaf((TERM, name), orjson.dumps({"op": "=", "args": [{"property": name}, "one"]}))
        answers = await dictionaries.verdicts(conn, [made_up])
        assert answers[made_up].table.tolist() == [UNKNOWN, UNDECIDED]
        assert not dictionaries.values_of(name)
        assert (await dictionaries.ranks(conn, name)).tolist() == [NULL, NULL]
    assert list(dictionaries._by_place) == [(TERM, NAME)]
    assert not dictionaries._ranks
    dictionaries.add_terms([Term(2, "x:made_up_0", '"two"')])
    assert dictionaries.values_of("x:made_up_0") == {2: "two"}
    assert not dictionaries.values_of("x:made_up_1")


@pytest.mark.usefixtures("server")
async def test_an_answer_is_completed_though_another_one_took_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    dictionaries, conn = Dictionaries(), cast(Any, None)
    dictionaries.add_terms([Term(1, NAME, '"one"')])
    older = leaf("like", "o%")
    await dictionaries.verdicts(conn, [older])
    dictionaries.add_terms([Term(2, NAME, '"two"')])
    monkeypatch.setattr(module, "MOST_KEPT_BYTES", dictionaries.answer_bytes + 100)
    newer = leaf("=", "two")
    answers = await dictionaries.verdicts(conn, [older, newer])
    assert answers[older].table[:3].tolist() == [TRUE, TRUE, TRUE]
    assert answers[newer].table[1:3].tolist() == [FALSE, TRUE]


async def test_answers_of_postgresql_stay_beside_many_that_are_found_here(monkeypatch: pytest.MonkeyPatch) -> None:
    dictionaries, conn = Dictionaries(), cast(Any, None)
    dictionaries.add_terms([Term(1, NAME, '"one"')])
    questions: list[Sequence[Any]] = []

    async def truths(_: object, __: object, expressions: Sequence[Any], codes: Sequence[int]) -> Any:
        questions.append(expressions)
        return {code: [True] * len(expressions) for code in codes}

    monkeypatch.setattr("fedstac.columns.dictionaries.columns.truths", truths)
    monkeypatch.setattr(module, "MOST_KEPT_BYTES", 2_000)
    for number in range(50):
        await dictionaries.verdicts(conn, [leaf("like", "o%"), leaf("=", f"value {number}")])
    assert len(questions) == 1
    assert dictionaries.answer_bytes <= 2 * 2_000
