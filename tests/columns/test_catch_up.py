"""Columns beside writers that roll back, use savepoints and stay open: they are what one snapshot of the table has."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from types import MappingProxyType
from typing import Any, NoReturn, TypeAlias, TypeVar

import asyncpg
import pytest

from fedstac.columns import live, memory
from fedstac.columns.memory import FacetColumns, PageQuestion
from fedstac.columns.order import Order
from fedstac.db import columns as stored
from fedstac.db import connections
from fedstac.db.columns import Term
from fedstac.db.search import Anchor
from fedstac.domain.errors import Unavailable
from fedstac.runtime.capacity import Threads
from fedstac.runtime.outages import Outage
from fedstac.runtime.supervision import Expected, Parts
from tests.columns.tables import PUT

T = TypeVar("T")
Conn: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
WRITERS, LOOKS, MANY_LOOKS = 4, 25, 400
ROWS = 300
GROUPS = "SELECT collection, shown, size, codes[24] AS code, count(*) AS count FROM fedstac.facet GROUP BY 1, 2, 3, 4"


class NotingParts(Parts):
    """Notes the errors that are reported to it."""

    def __init__(self, outage: Outage) -> None:
        super().__init__(outage)
        self.errors = list[type[BaseException]]()

    def fails(self, name: str, error: BaseException, expected: Expected = MappingProxyType({})) -> None:
        self.errors.append(type(error))


@pytest.fixture
async def columns(dsn: str) -> AsyncIterator[FacetColumns]:
    columns = FacetColumns(dsn, "fedstac test")
    yield columns
    await columns.close()


async def write(dsn: str, rng: random.Random, stop: asyncio.Event) -> None:
    """Write rows, in transactions of every kind, until `stop`."""
    conn = await connections.connect(dsn)
    try:
        while not stop.is_set():
            transaction = conn.transaction()
            await transaction.start()
            for _ in range(rng.randint(1, 4)):
                savepoint = conn.transaction()
                await savepoint.start()
                numbers = sorted(rng.sample(range(ROWS), rng.choice((1, 3, 20))))
                await conn.execute(PUT, numbers, rng.choice((0, 1, 2, 5)), rng.randrange(4))
                await (savepoint.rollback() if rng.random() < 0.3 else savepoint.commit())
                if rng.random() < 0.2:
                    await asyncio.wait((asyncio.ensure_future(stop.wait()),), timeout=0.05)
            await (transaction.rollback() if rng.random() < 0.3 else transaction.commit())
    except asyncpg.DeadlockDetectedError:
        if not stop.is_set():
            await conn.close()
            return await write(dsn, rng, stop)
    finally:
        await conn.close()


async def is_ready(columns: FacetColumns) -> bool:
    return columns.is_ready


def groups_of(columns: FacetColumns) -> Counter[tuple[int, ...]]:
    table = columns.table
    names = ("collection", "shown", "size")
    counted = Counter(zip(*(table.column(name).tolist() for name in names), table.place(23).tolist(), strict=True))
    return Counter({key: count for key, count in counted.items() if key[0]})  # collection 0: no row has the number


async def compare(columns: FacetColumns, conn: Conn) -> None:
    """Look, and count, in one snapshot."""
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        await columns.look(conn)
        rows = await conn.fetch(GROUPS)
    wanted = {(row["collection"], row["shown"], row["size"], row["code"]): row["count"] for row in rows}
    assert groups_of(columns) == wanted


async def _beside_writers(dsn: str, conn: Conn, columns: FacetColumns, looks: int) -> None:
    stop = asyncio.Event()
    rng = random.Random(11)
    writers = [asyncio.create_task(write(dsn, random.Random(n), stop)) for n in range(WRITERS)]
    long_one = await connections.connect(dsn)
    try:
        transaction = long_one.transaction()
        await transaction.start()
        await long_one.execute(PUT, [ROWS + 1], 1, 9)  # its id is older than those of all that follow
        for look in range(looks):
            await asyncio.wait(writers, timeout=rng.choice((0, 0.01, 0.03)))
            await compare(columns, conn)
            if look == looks // 2:
                await transaction.commit()
        stop.set()
        await asyncio.gather(*writers)
        await compare(columns, conn)
        assert columns.table.column("size")[ROWS + 1] == 9
    finally:
        stop.set()
        await asyncio.gather(*writers)
        await long_one.close()


async def test_looks_beside_writers_give_what_a_snapshot_has(dsn: str, conn: Conn, columns: FacetColumns) -> None:
    await _beside_writers(dsn, conn, columns, LOOKS)


@pytest.mark.soak
async def test_hundreds_of_looks_beside_writers(dsn: str, conn: Conn, columns: FacetColumns) -> None:
    await _beside_writers(dsn, conn, columns, MANY_LOOKS)


async def test_many_changes_come_by_copy(conn: Conn, columns: FacetColumns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "FEW", 50)
    await columns.catch_up()
    for count in (49, 50, 51, 400):
        await conn.execute(PUT, list(range(count)), 1, count)
        await columns.catch_up()
        assert columns.table.column("size")[:count].tolist() == [count] * count


async def test_after_very_many_changes_columns_are_loaded_again(
    conn: Conn, columns: FacetColumns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be taken up in the event loop, in one go."""
    monkeypatch.setattr(stored, "FEW", 50)
    monkeypatch.setattr(live, "MOST_CHANGES", 200)
    await columns.catch_up()
    for count, is_small in ((200, True), (201, False)):
        await conn.execute(PUT, list(range(count)), 1, count)
        await columns.catch_up()
        assert await is_ready(columns) is is_small
        await columns.catch_up()
        assert columns.table.column("size")[:count].tolist() == [count] * count


async def test_a_look_that_takes_too_long_is_reported_and_everything_is_loaded_again(
    conn: Conn, columns: FacetColumns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next look would have more to do. The search that waits for it goes to PostgreSQL, and is no error."""

    async def never(conn: Any, since: str) -> NoReturn:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def fail() -> NoReturn:
        raise TimeoutError

    await conn.execute(PUT, [1], 1, 7)
    await columns.catch_up()
    threads, parts, stop = Threads(), NotingParts(Outage("the database")), asyncio.Event()
    try:
        with monkeypatch.context() as patched:
            patched.setattr(live, "LOOK_SECONDS", 0.05)
            patched.setattr(stored, "changes", never)
            assert await columns.page(conn, threads, PageQuestion({})) is None
            patched.setattr(columns, "catch_up", fail)
            assert await columns.page(conn, threads, PageQuestion({})) is None
            with pytest.raises(Unavailable):  # PostgreSQL cannot go on from a page of memory
                await columns.page(conn, threads, PageQuestion({}, anchor=Anchor((1,), in_memory=True)))
        assert not await is_ready(columns)
        part = asyncio.create_task(columns.keep_loaded(parts, stop))
        async with asyncio.timeout(10):
            while not await is_ready(columns):
                await asyncio.wait((part,), timeout=0.01)
        stop.set()
        await part
        assert parts.errors == [TimeoutError]
        assert columns.table.column("size")[1] == 7
    finally:
        threads.close()


@pytest.mark.parametrize("name", ["x:p", "collection"])
async def test_an_order_is_made_again_when_values_came_since(
    name: str, conn: Conn, columns: FacetColumns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another search may take them up before the rows are looked at; they would be sorted as null."""
    await conn.execute(PUT, [1, 2], 1, 7)
    await columns.catch_up()
    understand, orders = columns._understand, list[Order]()

    async def understand_before_a_value_comes(*given: Any) -> Any:
        meaning = await understand(*given)
        assert meaning is not None
        orders.append(meaning.order)
        if len(orders) == 1:
            columns.dictionaries.add_terms([Term(3, "x:p", '"new"')])
            columns.dictionaries.collections["new"] = 4
        return meaning

    async def ranks(conn: Any, name: str, codes: Sequence[int]) -> dict[int, int | None]:
        return {code: code for code in codes}

    columns.dictionaries.add_terms([Term(1, "x:p", '"a"'), Term(2, "x:p", '"b"')])
    monkeypatch.setattr(stored, "ranks", ranks)
    monkeypatch.setattr(columns, "_understand", understand_before_a_value_comes)
    threads = Threads()
    try:
        await columns.page(conn, threads, PageQuestion({}, ((name, False),), 5), whole=False)
    finally:
        threads.close()
    assert [each.keys[0].newest for each in orders] == ([3, 4] if name == "x:p" else [0, 4])


async def test_nothing_is_counted_while_columns_load(
    conn: Conn, columns: FacetColumns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading writes beside the threads that read, so that these would find columns of different lengths."""
    monkeypatch.setattr(memory, "INLINE", 0)
    await conn.execute(PUT, [1, 2], 1, 7)
    await columns.catch_up()
    calls = []

    def note(*given: object) -> int:
        calls.append(given)
        return 1

    class BusyThreads(Threads):
        async def run(self, work: Callable[[], T]) -> T:
            columns._empty()
            return work()

    threads = BusyThreads()
    try:
        answer = await columns.count(conn, threads, PageQuestion({}), note, key="all")
    finally:
        threads.close()
    assert answer is None
    assert not calls


async def test_whoever_comes_during_a_look_shares_the_next(conn: Conn, columns: FacetColumns) -> None:
    await columns.catch_up()
    before = columns.catch_ups
    await conn.execute(PUT, [1, 2, 3], 1, 7)
    await asyncio.gather(*(columns.catch_up() for _ in range(50)))
    assert columns.catch_ups - before == 2
    assert columns.table.column("size")[1:4].tolist() == [7, 7, 7]


async def test_a_connection_that_breaks_is_replaced(conn: Conn, columns: FacetColumns) -> None:
    await columns.catch_up()
    await conn.execute(PUT, [1], 1, 7)
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'fedstac test columns'"
    assert await conn.fetchval(end)
    await asyncio.gather(columns.catch_up(), columns.catch_up(), return_exceptions=True)  # the first may fail
    await columns.catch_up()
    assert columns.table.column("size")[1] == 7


async def test_columns_that_lack_removals_are_loaded_again(conn: Conn, columns: FacetColumns) -> None:
    await conn.execute(PUT, [1, 2, 3], 0, 7)
    await columns.catch_up()
    await conn.execute("DELETE FROM fedstac.facet WHERE n = 2")
    await conn.execute("UPDATE fedstac.facet_removed SET through = pg_current_xact_id()")
    await columns.catch_up()
    assert not await is_ready(columns)
    await columns.catch_up()
    assert await is_ready(columns)
    assert columns.table.column("size").tolist() == [0, 7, 0, 7]


async def test_columns_of_another_history_are_loaded_again(conn: Conn, columns: FacetColumns) -> None:
    """What was lost with a server leaves no trace in the one that took over, whose transaction ids may be higher."""
    await conn.execute(PUT, [1, 2], 1, 7)
    await columns.catch_up()
    await conn.execute("DELETE FROM fedstac.facet WHERE n = 1")
    await columns.catch_up()
    assert await is_ready(columns)
    await conn.execute(
        "INSERT INTO fedstac.epoch (n, forked_at_pos) SELECT coalesce(max(n), 1) + 1, 0 FROM fedstac.epoch"
    )
    await columns.catch_up()
    assert not await is_ready(columns)
    await columns.catch_up()
    assert columns.table.column("size").tolist() == [0, 0, 7]


async def test_columns_wait_until_all_datasets_have_rows(conn: Conn, columns: FacetColumns) -> None:
    await conn.execute("SET fedstac.columns = 'on'")  # else a trigger gives each record its row
    await conn.execute("INSERT INTO fedstac.lineage (key, origin) VALUES ('l', 'west')")
    await conn.execute(
        """INSERT INTO fedstac.record (collection, id, lineage, origin, state, latest, claims_latest, epoch, seq,
               created, updated, document_digest, files_digest, digest, publisher, n)
           VALUES ('c', 'i', 'l', 'west', 'deleted', false, false, 1, 1, now(), now(), '', '', '', 'p', NULL)"""
    )
    await columns.catch_up()
    assert not await is_ready(columns)
    await conn.execute("UPDATE fedstac.record SET n = 5")
    await columns.catch_up()
    assert await is_ready(columns)
