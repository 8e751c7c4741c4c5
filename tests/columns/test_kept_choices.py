"""Pages that are kept as they were chosen: until a row is written, and no longer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from fedstac.columns import memory
from fedstac.columns.memory import Chosen, FacetColumns, PageQuestion, Understood
from fedstac.columns.plan import Plan
from fedstac.columns.selection import Evaluation, Selection
from fedstac.db import columns as stored
from fedstac.db.connections import Connection
from fedstac.db.search import Anchor
from fedstac.runtime.capacity import Threads
from tests.columns.tables import PUT

FIRST = PageQuestion({}, (("datetime", True),), 5)


class NotingColumns(FacetColumns):
    """Notes the questions for which it chooses."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn, "fedstac test")
        self.questions: list[PageQuestion] = []

    def _select(self, meaning: Understood, evaluation: Evaluation, selection: Selection | None = None) -> Chosen | None:
        self.questions.append(meaning.question)
        return super()._select(meaning, evaluation, selection)


@pytest.fixture
async def columns(dsn: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NotingColumns]:
    async def collections(_: Connection) -> dict[str, int]:
        return {"a": 1, "b": 2, "c": 3}

    monkeypatch.setattr(stored, "collections", collections)
    columns = NotingColumns(dsn)
    yield columns
    await columns.close()


async def matched(columns: FacetColumns, conn: Connection, question: PageQuestion) -> int:
    threads = Threads()
    try:
        found = await columns.page(conn, threads, question, whole=False)
    finally:
        threads.close()
    assert found is not None
    return found.matched


async def test_a_page_is_chosen_once_until_a_row_is_written(conn: Connection, columns: NotingColumns) -> None:
    await conn.execute(PUT, list(range(1, 8)), 1, 0)
    await columns.catch_up()
    assert [await matched(columns, conn, FIRST) for _ in range(3)] == [7, 7, 7]
    assert columns.questions == [FIRST]
    await conn.execute(PUT, [3], 0, 0)
    assert [await matched(columns, conn, FIRST) for _ in range(2)] == [6, 6]
    assert columns.questions == [FIRST, FIRST]
    await conn.execute(PUT, [20, 21], 1, 0)
    assert await matched(columns, conn, FIRST) == 8


async def test_each_question_has_a_page_of_its_own(conn: Connection, columns: NotingColumns) -> None:
    await conn.execute(PUT, list(range(1, 8)), 1, 0)
    await columns.catch_up()
    questions = [
        FIRST, PageQuestion({}, (("datetime", True),), 6), PageQuestion({}, (("datetime", False),), 5),
        PageQuestion({"retracted": "only"}, (("datetime", True),), 5),
        PageQuestion({}, (("datetime", True),), 5, Anchor((0, 3), in_memory=True)),
        PageQuestion({}, (("datetime", True),), 5, Anchor((0, 3), is_before=True, in_memory=True)),
    ]  # fmt: skip
    for _ in range(2):
        for question in questions:
            await matched(columns, conn, question)
    assert columns.questions == questions
    assert len({question.key for question in questions}) == len(questions)


async def test_few_are_kept_and_none_of_a_large_page(
    conn: Connection, columns: NotingColumns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MOST_CHOICES", 2)
    monkeypatch.setattr(memory, "LARGEST_CHOICE", 10)
    await conn.execute(PUT, list(range(1, 8)), 1, 0)
    await columns.catch_up()
    for limit in (1, 2, 3, 3, 2, 1, 11, 11):
        await matched(columns, conn, PageQuestion({}, (("datetime", True),), limit))
    assert [question.limit for question in columns.questions] == [1, 2, 3, 1, 11, 11]


@pytest.fixture
def put_while_understood(
    conn: Connection, columns: NotingColumns, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], None]:
    """Return what has a dataset of the id `late` come after it was looked up, and a look before rows are chosen."""

    def expect(number: int) -> None:
        stock: list[int] = []

        async def numbers(_: Connection, collections: Sequence[str], ids: Sequence[str]) -> dict[str, list[int]]:
            answer = {"late": [*stock]}
            if not stock:
                stock.append(number)
                await conn.execute(PUT, [number], 1, 0)
                await columns.catch_up()
            return answer

        monkeypatch.setattr(stored, "numbers", numbers)

    return expect


async def test_a_page_that_lacks_what_came_meanwhile_is_not_kept(
    conn: Connection, columns: NotingColumns, put_while_understood: Callable[[int], None]
) -> None:
    await conn.execute(PUT, [1, 2, 3], 1, 0)
    await columns.catch_up()
    put_while_understood(9)
    question = PageQuestion({"ids": ["late"]}, (("datetime", True),), 5)
    assert [await matched(columns, conn, question) for _ in range(3)] == [0, 1, 1]


async def test_a_count_that_lacks_what_came_meanwhile_is_not_kept(
    conn: Connection, columns: NotingColumns, put_while_understood: Callable[[int], None]
) -> None:
    await conn.execute(PUT, [1, 2, 3], 1, 0)
    await columns.catch_up()
    put_while_understood(9)
    question, threads = PageQuestion({"ids": ["late"]}), Threads()

    def count(_: Evaluation, __: Plan, selection: Selection) -> int:
        return selection.count

    try:
        counts = [await columns.count(conn, threads, question, count, key="late") for _ in range(3)]
    finally:
        threads.close()
    assert counts == [0, 1, 1]


def test_a_long_question_has_a_short_key() -> None:
    ids = [f"{n:0200}" for n in range(10_000)]
    first, second = PageQuestion({"ids": ids}, limit=5), PageQuestion({"ids": ids[1:]}, limit=5)
    assert len(first.key) == len(second.key) == 32
    assert first.key != second.key
