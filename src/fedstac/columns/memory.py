"""Searches and counts in the columns of a process, each of all that was committed before it."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar, cast

import orjson

from fedstac.columns.answer_cache import AnswerCache
from fedstac.columns.dictionaries import Dictionaries, Leaf, Verdicts
from fedstac.columns.document_cache import DocumentCache
from fedstac.columns.live import LiveColumns
from fedstac.columns.order import Order, Pager, Place, order
from fedstac.columns.plan import Plan, plan
from fedstac.columns.row_cache import RowCache
from fedstac.columns.selection import Evaluation, Selection
from fedstac.columns.shown_values import ShownValues, ValuesByProperty
from fedstac.columns.table import Numbers
from fedstac.db import columns, conditions, search
from fedstac.db.columns import DatasetRow
from fedstac.db.connections import Connection, Reader
from fedstac.db.search import PAGE_BYTES, Anchor, ItemPage, ServedItem
from fedstac.domain.errors import Unavailable
from fedstac.runtime.capacity import Threads

T = TypeVar("T")

MOST_DOUBTFUL = 10_000  # datasets that are asked themselves; where more would have to be, PostgreSQL searches
MOST_NAMED = 20_000  # pairs of an id and a collection that are looked up
INLINE = 1_000_000  # rows, for each condition, that the event loop looks at by itself; more are for a thread
LOOKS_OF_VALUE = 500  # at rows, which take as long as the count of one value
INLINE_ITEMS = 1_000  # of a page that it puts in order
MOST_ANSWERS = 16  # of counts that are kept: those of the pages that people begin with
SHOWN_SECONDS = 600.0  # after which values are counted anew: a property that had very many may have few by now
MOST_CHOICES, LARGEST_CHOICE = 500, 100  # pages that are kept as chosen, and datasets of each
ATTEMPTS = 3  # at a page while its datasets change, or values come that its order lacks


@dataclass(frozen=True, slots=True)
class PageQuestion:
    """A page that is asked for.

    conditions: checked, as db/conditions.where takes them. order: properties as (name, descending).
    """

    conditions: Mapping[str, Any]
    order: Sequence[tuple[str, bool]] = ()
    limit: int = 0
    anchor: Anchor | None = None

    @property
    def key(self) -> bytes:
        """The same for questions that have the same answer; it is short, however long the question is."""
        parts = (self.conditions, self.order, self.limit, self.anchor)
        return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).digest()


@dataclass(frozen=True, slots=True)
class Found:
    """A page, and how many datasets the search has in all."""

    page: ItemPage
    matched: int


@dataclass(frozen=True, slots=True)
class Understood:
    """A search, and what PostgreSQL says of its conditions and its order."""

    question: PageQuestion
    dictionaries: Dictionaries  # that it is understood by
    plan: Plan
    verdicts: Mapping[Leaf, Verdicts]
    numbers_by_id: Mapping[str, Sequence[int]]  # numbers of datasets by id
    order: Order
    changes: int  # rows that had been written before: of those that come meanwhile, not all is known


class IncompleteOrder(Exception):
    """The columns have values that came after a search was understood: its order has no places for them."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the columns say of a search: the numbers of the page, their places, and which transactions changed them.

    Where datasets are `doubtful`, the page is for later, and made of the `selection`.
    changes: as of Understood.
    """

    selection: Selection | None
    doubtful: Numbers
    changes: int
    count: int = 0
    numbers: tuple[int, ...] = ()
    places: tuple[Place, ...] = ()
    change_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """What was counted, and how many rows had been written when the search was understood."""

    changes: int
    result: Any


@dataclass(frozen=True, slots=True)
class CountAttempt(Generic[T]):
    """What was made of a selection, if nothing in it is doubtful; `answer`: to be kept."""

    answer: KeptAnswer
    selection: Selection
    result: T | None


class FacetColumns(LiveColumns):
    """All searches of a process share it.

    cache_bytes: of the datasets that were shown of late, and half as many of answers about one; 0: none is kept.
    """

    def __init__(self, dsn: str, application: str, *, cache_bytes: int = 0) -> None:
        self.documents = DocumentCache(cache_bytes)
        self.answers: AnswerCache[Any] = AnswerCache(cache_bytes // 2)
        super().__init__(dsn, application)

    def _empty(self) -> None:
        super()._empty()
        self._row_cache = RowCache(self.table)
        self._answers: OrderedDict[str, KeptAnswer] = OrderedDict()  # of `count`
        self._shown_values: ShownValues | None = None
        self._shown_until = 0.0  # by the monotonic clock
        self._choices: OrderedDict[bytes, Chosen] = OrderedDict()  # of pages
        self.documents.clear()
        self.answers.clear()

    def _on_places(self) -> None:
        self._row_cache.clear()

    def _on_rows(self, numbers: Sequence[int]) -> None:
        self.documents.drop(numbers)
        self.answers.drop(numbers)

    @property
    def bytes(self) -> int:
        """Return how much memory the columns have, and what is kept of them by condition."""
        return super().bytes + self._row_cache.bytes + self.dictionaries.answer_bytes

    async def page(self, conn: Reader, threads: Threads, question: PageQuestion, *, whole: bool = True) -> Found | None:
        """Return a page of a search, of all that was committed before; None where memory cannot tell.

        whole: with its documents, of large ones only the first few; else all of it is `rest`. BadRequest where
        PostgreSQL cannot evaluate a condition. Unavailable where only memory can go on, and is not up to date.
        """
        for attempt in range(ATTEMPTS):
            if not await self._is_current():
                break
            try:
                choice = self._kept_choice(question) or await self._choose(conn, threads, question)
            except IncompleteOrder:
                continue
            if choice is None:
                return None
            if not whole:
                return await _large_page(conn, choice, question)
            answer = await self._page(conn, choice, question, is_again=attempt > 0)
            if answer is not None:
                return answer
        if question.anchor is not None:  # PostgreSQL could not go on from it
            raise Unavailable("what pages are made from is not up to date; try again", retry_after=2)
        return None

    async def count(
        self,
        conn: Connection,
        threads: Threads,
        question: PageQuestion,
        count: Callable[[Evaluation, Plan, Selection], T | None],
        *,
        key: str | None,
        properties: Collection[str] = (),
    ) -> T | None:
        """Return what `count` makes of what a search finds, of all that was committed before; None as `page` does.

        It is called while the columns stand still, maybe in a thread, and keeps nothing of them. Its result stays under
        the key, which names the conditions and all that `count` looks at, until a row is another one. Without a key
        nothing is kept. properties: whose values are counted.
        """
        if not await self._is_current():
            return None
        answer = self._answers.get(key) if key is not None else None
        if key is not None and answer is not None and answer.changes == self.table.changes:
            self._answers.move_to_end(key)
            return cast("T", answer.result)
        meaning = await self._understand(conn, question)
        if meaning is None:
            return None

        def work(evaluation: Evaluation) -> CountAttempt[T]:
            selection = evaluation.select(meaning.plan)
            is_sure = not len(selection.doubtful)
            result = count(evaluation, meaning.plan, selection) if is_sure else None
            answer = KeptAnswer(meaning.changes, result)
            return CountAttempt(answer, selection, result)

        looks = LOOKS_OF_VALUE * sum(len(self.dictionaries.values_of(name)) for name in properties)
        attempt = await self._run(threads, meaning, work, of_row=len(properties), beside=looks)
        if attempt is None or len(doubtful := attempt.selection.doubtful) > MOST_DOUBTFUL:
            return None
        if len(doubtful):
            where = conditions.where(question.conditions)
            whole = attempt.selection.with_hits(await columns.matching(conn, where, doubtful.tolist()))

            def count_whole(evaluation: Evaluation) -> T | None:
                return count(evaluation, meaning.plan, whole)

            return await self._run(threads, meaning, count_whole, of_row=len(properties), beside=looks)
        if key is not None and self._is_known(meaning) and attempt.result is not None:
            self._answers[key] = attempt.answer
            while len(self._answers) > MOST_ANSWERS:
                self._answers.popitem(last=False)
        return attempt.result

    async def values_shown(self, threads: Threads, most: int) -> ValuesByProperty:
        """Return the values that published datasets have, by collection and property, of all that was committed before.

        Nothing where memory cannot tell. A property with more than `most` values in a collection is left out.
        """
        if not await self._is_current():
            return {}
        counts = self._shown_values
        if counts is not None and time.monotonic() < self._shown_until and counts.follow(self.table.shown_changes):
            return counts.by_property(self.dictionaries)
        table, dictionaries, until = self.table, self.dictionaries, time.monotonic() + SHOWN_SECONDS

        def count() -> tuple[ShownValues, ValuesByProperty]:
            with self._gate.reading():
                anew = ShownValues(table, most)
                return anew, anew.by_property(dictionaries)

        anew, values = await threads.run(count)
        if self.dictionaries is dictionaries:  # they were not loaded again meanwhile
            self._shown_values, self._shown_until = anew, until
        return values

    async def _understand(self, conn: Reader, question: PageQuestion) -> Understood | None:
        if not self.is_ready:
            return None
        changes, parts, dictionaries = self.table.changes, plan(question.conditions), self.dictionaries
        ordered = await order(conn, question.order, dictionaries)
        ids, names = parts.ids, dictionaries.collections.keys()
        searched = names if parts.collections is None else names & parts.collections
        if ordered is None or len(ids) * len(searched) > MOST_NAMED:
            return None
        numbers_by_id = await columns.numbers(conn, sorted(searched), sorted(ids)) if ids else {}
        verdicts = await dictionaries.verdicts(conn, parts.leaves)
        return Understood(question, dictionaries, parts, verdicts, numbers_by_id, ordered, changes)

    def _kept_choice(self, question: PageQuestion) -> Chosen | None:
        """Return a page as it was chosen before, if no row was written since."""
        if question.limit > LARGEST_CHOICE:
            return None
        choice = self._choices.get(key := question.key)
        if choice is None or choice.changes != self.table.changes:
            return None
        self._choices.move_to_end(key)
        return choice

    def _keep_choice(self, meaning: Understood, choice: Chosen) -> None:
        if meaning.question.limit <= LARGEST_CHOICE and self._is_known(meaning):
            self._choices[meaning.question.key] = replace(choice, selection=None)
            while len(self._choices) > MOST_CHOICES:
                self._choices.popitem(last=False)

    async def _choose(self, conn: Reader, threads: Threads, question: PageQuestion) -> Chosen | None:
        meaning = await self._understand(conn, question)
        if meaning is None:
            return None
        of_row = 0 if meaning.order.is_by_start else len(meaning.order.keys)
        beside = 0 if self._starts.is_sorted or not meaning.order.is_by_start else self.table.length
        choice = await self._run(threads, meaning, partial(self._select, meaning), of_row=of_row, beside=beside)
        if choice is None:
            return None
        if choice.selection is None or not len(choice.doubtful):
            self._keep_choice(meaning, choice)
            return choice
        if len(choice.doubtful) > MOST_DOUBTFUL:
            return None
        where = conditions.where(question.conditions)
        matching = await columns.matching(conn, where, choice.doubtful.tolist())
        select = partial(self._select, meaning, selection=choice.selection.with_hits(matching))
        return await self._run(threads, meaning, select, of_row=of_row)

    async def _run(
        self,
        threads: Threads,
        meaning: Understood,
        work: Callable[[Evaluation], T | None],
        *,
        of_row: int = 0,
        beside: int = 0,
    ) -> T | None:
        """Look at the columns: in the event loop where that is little work, else in a thread. None where they are gone.

        of_row, beside: looks at each row that is found, and beside them, after the conditions.
        """
        if meaning.question.limit <= INLINE_ITEMS and self._is_known(meaning):
            evaluation = self._evaluation(meaning)
            effort = evaluation.effort(meaning.plan)
            if effort.looks + effort.most_found * of_row + beside <= INLINE:
                return work(evaluation)

        def read() -> T | None:
            with self._gate.reading():
                return work(self._evaluation(meaning)) if self._is_known(meaning) else None

        return await threads.run(read)

    def _is_known(self, meaning: Understood) -> bool:
        """Return whether the columns are those that a search was understood by, and not being loaded."""
        return self.is_ready and self.dictionaries is meaning.dictionaries

    def _evaluation(self, meaning: Understood) -> Evaluation:
        collections = meaning.plan.collections
        return Evaluation(
            self.table, self.dictionaries, meaning.verdicts, meaning.numbers_by_id, collections, self._row_cache
        )

    def _select(self, meaning: Understood, evaluation: Evaluation, selection: Selection | None = None) -> Chosen | None:
        """Evaluate a search; None where the rows do not have what its order needs.

        IncompleteOrder where they have values that are newer than the order.
        """
        if not meaning.order.is_complete(self.dictionaries):
            raise IncompleteOrder
        pager = Pager(self.table, evaluation, self._starts, meaning.order)
        if not pager.knows_order(self.dictionaries):
            return None
        selection = selection or evaluation.select(meaning.plan)
        doubtful = selection.doubtful
        if len(doubtful):
            return Chosen(selection, doubtful, meaning.changes)
        limit, anchor = meaning.question.limit + 1, meaning.question.anchor
        numbers = pager.page(selection, limit, anchor, within=meaning.plan.starts)
        change_ids = self.table.column("changed")[numbers]
        return Chosen(
            selection, doubtful, meaning.changes, selection.count, tuple(numbers.tolist()),
            tuple(pager.places(numbers)), tuple(change_ids.tolist()),
        )  # fmt: skip

    async def _page(self, conn: Reader, choice: Chosen, question: PageQuestion, *, is_again: bool) -> Found | None:
        """Return the page with its documents; None where a dataset changed since the columns were read.

        is_again: that has happened before; what changed is asked whether it still meets the conditions, or left out.
        """
        numbers = choice.numbers[: question.limit]
        change_ids = dict(zip(choice.numbers, choice.change_ids, strict=True))
        items = {number: self.documents.find(number, change_ids[number]) for number in numbers}
        cached_bytes = sum(_most_bytes(item.document) for item in items.values() if item is not None)
        missing = [number for number, item in items.items() if item is None]
        rows = await columns.documents(conn, missing) if missing else []
        if cached_bytes + (rows[-1].through if rows else 0) >= PAGE_BYTES:  # how many fit has to be asked of all
            missing = list(numbers)
            items, rows = dict.fromkeys(numbers), await columns.documents(conn, missing)
        self.documents.keep(rows)
        is_cut = bool(rows) and rows[-1].through >= PAGE_BYTES
        count = numbers.index(rows[-1].number) + 1 if is_cut else len(numbers)
        count_to_read = count if is_cut else len(missing)
        if len(rows) < count_to_read or any(row.changed != change_ids[row.number] for row in rows):
            if not is_again:
                return None
            rows = await _unchanged(conn, rows, change_ids, conditions.where(question.conditions))
        items |= {row.number: row.item for row in rows}
        return _answer(choice, question, count, items=tuple(item for item in items.values() if item is not None))


def _most_bytes(text: str) -> int:
    """Return how many bytes of UTF-8 a text has at most."""
    return len(text) if text.isascii() else 4 * len(text)


async def _large_page(conn: Reader, choice: Chosen, question: PageQuestion) -> Found:
    """Return the page with the places of its items only."""
    numbers, places = choice.numbers[: question.limit], choice.places[: question.limit]
    names = await columns.names(conn, numbers)
    rest = [
        search.packed(*names[number], *place) for number, place in zip(numbers, places, strict=True) if number in names
    ]
    return _answer(choice, question, len(numbers), rest=tuple(rest))


def _answer(
    choice: Chosen,
    question: PageQuestion,
    count: int,
    *,
    items: tuple[ServedItem, ...] = (),
    rest: tuple[bytes, ...] = (),
) -> Found:
    """Return a page of the first `count` places; what it has is in order of their distance from the anchor."""
    direction = -1 if question.anchor is not None and question.anchor.is_before else 1
    places = choice.places[:count][::direction]
    has_more = len(choice.numbers) > count
    beside = search.anchors((*places[:1], *places[-1:]), question.anchor, has_more=has_more, in_memory=True)
    return Found(ItemPage(items[::direction], *beside, rest[::direction], in_memory=True), choice.count)


async def _unchanged(
    conn: Reader, rows: Sequence[DatasetRow], change_ids: Mapping[int, int], where: str
) -> list[DatasetRow]:
    """Return the datasets that did not change, and of the others those that still meet the conditions."""
    others = [row.number for row in rows if row.changed != change_ids[row.number]]
    matches = set(await columns.matching(conn, where, others)) if others else set()
    return [row for row in rows if row.changed == change_ids[row.number] or row.number in matches]
