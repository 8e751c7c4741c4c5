"""What is kept of conditions and terms: never more than there is room for, and nothing of what callers invent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import orjson
import pytest

from fedstac.columns import dictionaries as module
from fedstac.columns.dictionaries import FALSE, NULL, TRUE, UNDECIDED, UNKNOWN, Dictionaries, Leaf, Place
from fedstac.db import columns as stored
from fedstac.db.columns import FOOTPRINT, TERM, Term
from fedstac.domain.geometry import Rectangle

NAME = "x:name"


def leaf(op: str, value: str) -> Leaf:
    return Leaf((TERM, NAME), orjson.dumps({"op": op, "args": [{"property": NAME}, value]}))


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Let every condition that PostgreSQL is asked about be true of every entry. Return the codes of each question."""
    questions: list[list[int]] = []

    async def truths(conn: Any, place: Place, predicates: Sequence[Any], codes: Sequence[int]) -> dict[int, list[bool]]:
        questions.append(list(codes))
        return {code: [True] * len(predicates) for code in codes}

    monkeypatch.setattr(stored, "truths", truths)
    return questions


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


@pytest.mark.usefixtures("questions")
async def test_an_answer_is_completed_though_another_one_took_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    dictionaries, conn = Dictionaries(), cast(Any, None)
    dictionaries.add_terms([Term(1, NAME, '"one"')])
    older = leaf("like", "o%")
    await dictionaries.verdicts(conn, [older])
    dictionaries.add_terms([Term(2, NAME, '"two"')])
    monkeypatch.setattr(module, "MOST_KEPT_BYTES", dictionaries.answer_bytes + 100)
    newer, equality = leaf("like", "t%"), leaf("=", "two")
    answers = await dictionaries.verdicts(conn, [older, newer, equality])
    assert answers[older].table[:3].tolist() == [TRUE, TRUE, TRUE]
    assert answers[newer].table[:3].tolist() == [TRUE, TRUE, TRUE]
    assert answers[equality].table[1:3].tolist() == [FALSE, TRUE]


async def test_answers_of_postgresql_stay_beside_many_that_are_found_here(
    monkeypatch: pytest.MonkeyPatch, questions: list[list[int]]
) -> None:
    dictionaries, conn = Dictionaries(), cast(Any, None)
    dictionaries.add_terms([Term(1, NAME, '"one"')])
    monkeypatch.setattr(module, "MOST_KEPT_BYTES", 2_000)
    await dictionaries.verdicts(conn, [leaf("like", "o%")])
    for number in range(50):
        await dictionaries.verdicts(conn, [leaf("=", f"value {number}")])
    await dictionaries.verdicts(conn, [leaf("like", "o%")])
    assert questions == [[0, 1]]
    assert dictionaries.answer_bytes <= 2 * 2_000


async def test_each_footprint_that_is_no_rectangle_is_asked_about_once(questions: list[list[int]]) -> None:
    dictionaries, conn = Dictionaries(), cast(Any, None)
    ring = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]
    shape = {"type": "Polygon", "coordinates": [ring]}
    box = Leaf((FOOTPRINT, ""), orjson.dumps({"op": "s_intersects", "args": [{"property": "geometry"}, shape]}))
    for code in range(1, 10):  # those with an odd code are rectangles
        dictionaries.add_footprints([code], {code: [Rectangle(0.0, 0.0, 1.0, 1.0)]} if code % 2 else {})
        for _ in range(2):
            answer = (await dictionaries.verdicts(conn, [box]))[box]
            assert answer.table[1 : code + 1].tolist() == [TRUE] * code
    assert questions == [[2], [4], [6], [8]]


async def test_an_answer_that_takes_much_of_the_room_displaces_none(
    monkeypatch: pytest.MonkeyPatch, questions: list[list[int]]
) -> None:
    dictionaries, conn = Dictionaries(), cast(Any, None)
    dictionaries.add_terms([Term(1, NAME, '"one"')])
    await dictionaries.verdicts(conn, [leaf("like", "o%")])
    room = 4 * dictionaries.answer_bytes + 8
    monkeypatch.setattr(module, "MOST_KEPT_BYTES", room)
    await dictionaries.verdicts(conn, [leaf("like", "o" * 100 + "%")])
    await dictionaries.verdicts(conn, [leaf("like", "o%")])
    assert questions == [[0, 1], [0, 1]]
