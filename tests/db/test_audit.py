"""The audit log: what is in it, that its chain is whole, and that every kind of tampering is found."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from uuid import uuid4

import asyncpg
import psycopg
import pytest

from fedstac import publication
from fedstac.bootstrap import Node
from fedstac.db import audit, feed, invariants, people
from fedstac.db.audit import NewRow
from fedstac.db.connections import Connection
from fedstac.demo import embedded, sample
from fedstac.domain.audit import START, ChainBroken, ChainHead, Row
from fedstac.domain.groups import Identity
from tests.db import writing
from tests.db.writing import Connect
from tests.support.databases import name_in
from tests.support.waiting import PATIENCE

[ITEM] = sample.items(1)
ANNA = Identity("https://aai.example:8443/auth/x", "anna-1", "Anna", None, "", frozenset(), (), frozenset())
STRANGE = 'a "quoted" \\ back\tslash\n\x01\x7f é 数 \U0001f600'


def entry(n: int = 0, *, dataset: str = "") -> NewRow:
    return NewRow("anna", "publish", "CMIP6", dataset or f"dataset {n}", None, "new", n.to_bytes(32, "big"), None)


async def rows(conn: Connection, **wanted: str) -> list[Row]:
    return [row async for row in audit.rows(conn, audit.RowFilter(**wanted))]  # type: ignore[arg-type]


@pytest.fixture
def as_superuser(cluster: embedded.Cluster, dsn: str) -> Callable[[str], None]:
    """Runs statements in the test's database that no role of fedstac's may."""

    def run(statements: str) -> None:
        with psycopg.connect(cluster.dsn(name_in(dsn))) as conn:
            conn.execute(statements.encode())

    return run


# --- what a row says


async def test_an_accepted_write_says_who_what_and_what_it_became(connect: Connect) -> None:
    conn = await connect()
    await writing.publish(conn, ITEM)
    await writing.publish(conn, writing.titled(ITEM, "another"))
    changed, new, *_ = await rows(conn, dataset=ITEM["id"])
    assert (new.actor, new.action, new.collection, new.outcome) == ("anna", "publish", "CMIP6", "new")
    assert (new.before, new.decision, new.rule, new.pos) == (None, "allowed", "builtin: administrators", None)
    assert changed.before == new.after != changed.after


async def test_a_row_has_the_correlation_of_its_request_and_the_issuer_of_its_person(connect: Connect) -> None:
    conn = await connect()
    name = await people.pseudonym(conn, ANNA)
    request = await writing.submit(conn, ITEM)
    new_row = NewRow(name, "publish", "CMIP6", "x", request.id, "new", None, None)
    await audit.append(
        conn, [new_row, entry(), NewRow(f"person:{uuid4()}", "publish", "c", "y", None, "new", None, None)]
    )
    unknown, plain, row = (await rows(conn))[:3]
    assert (row.issuer, row.correlation, row.request) == ("aai.example:8443", "test", str(request.id))
    assert (plain.issuer, plain.correlation, plain.request) == (None, None, None)
    assert unknown.issuer is None


async def test_what_decided_is_named(connect: Connect) -> None:
    conn = await connect()
    [receipt] = await publication.perform(conn, writing.RULES, writing.work({**writing.plain(1), "collection": "gone"}))
    assert receipt.problem
    [row] = await rows(conn, outcome="rejected")
    assert (row.decision, row.rule, row.before, row.after) == ("refused", receipt.problem.name, None, None)


async def test_the_writer_may_add_rows_and_change_nothing(conn: asyncpg.Connection[asyncpg.Record]) -> None:
    for statement in (
        "UPDATE fedstac.audit SET actor = 'x'", "DELETE FROM fedstac.audit", "TRUNCATE fedstac.audit",
        "INSERT INTO fedstac.audit_chain VALUES (1, 1, '')", "UPDATE fedstac.audit_head SET pos = 0",
        "DELETE FROM fedstac.audit_chain", "DROP TABLE fedstac.audit",
    ):  # fmt: skip
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await conn.execute(statement)


# --- the chain


async def test_the_hashes_made_in_sql_are_those_made_here(connect: Connect) -> None:
    conn = await connect()
    await audit.append(
        conn, [entry(dataset=STRANGE), NewRow("", "", "", "", uuid4(), "", b"", b"x", "c", "r", 7, "{}")]
    )
    given = await audit.chain(conn)
    assert await audit.verify(conn) == await audit.head(conn)
    assert (await audit.head(conn)).pos == given >= 2
    assert await audit.chain(conn) == 0


async def test_nothing_new_writes_nothing(connect: Connect) -> None:
    conn = await connect()
    await audit.chain(conn)
    state = await conn.fetchrow("SELECT xmin, ctid, * FROM fedstac.audit_head")
    assert await audit.chain(conn) == 0
    assert await conn.fetchrow("SELECT xmin, ctid, * FROM fedstac.audit_head") == state


class Undone(Exception):
    """Rolls back."""


async def write(conn: Connection, seed: int) -> int:
    """Run transactions of one to forty rows, some slow, some rolled back. Return how many rows were committed."""
    chance, written = random.Random(f"audit/{seed}"), 0
    for _ in range(40):
        entries = [entry(chance.randrange(1 << 40)) for _ in range(chance.randrange(1, 40))]
        try:
            async with conn.transaction():
                await audit.append(conn, entries)
                await asyncio.sleep(chance.random() / 100)
                if chance.random() < 0.25:
                    raise Undone
        except Undone:
            continue
        written += len(entries)
    return written


async def chain_until(conn: Connection, done: asyncio.Event) -> None:
    """Sequence as one that is not alone, and does not notice."""
    while not done.is_set():
        try:
            await audit.chain(conn)
        except (asyncpg.SerializationError, asyncpg.UniqueViolationError):
            continue


ENOUGH = 4


async def kill_sequencers(connect: Connect, done: asyncio.Event) -> int:
    """Kill one sequencer after the other while it works, ENOUGH at least; return how many."""
    watcher, killed = await connect(), 0
    while killed < ENOUGH or not done.is_set():
        conn = await connect()
        task = asyncio.create_task(chain_until(conn, asyncio.Event()))
        await asyncio.sleep(random.Random(killed).random() / 50)
        await watcher.execute("SELECT pg_terminate_backend($1)", conn.get_server_pid())
        killed += 1
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, ConnectionError):
            await asyncio.wait_for(task, PATIENCE)
    return killed


async def test_the_chain_holds_with_many_writers_and_killed_sequencers(connect: Connect) -> None:
    conn, other, done = await connect(), await connect(), asyncio.Event()
    before = int(await conn.fetchval("SELECT count(*) FROM fedstac.audit"))
    killing = asyncio.create_task(kill_sequencers(connect, done))
    rival = asyncio.create_task(chain_until(other, done))
    written = sum(await asyncio.gather(*[write(await connect(), n) for n in range(4)]))
    done.set()
    killed = await killing
    await rival
    await audit.chain(conn)
    print(f"{written} rows, {killed} sequencers killed")
    assert written > 2000
    assert await audit.verify(conn) == ChainHead(before + written, (await audit.head(conn)).hash)
    assert await invariants.check(conn) == []


async def test_a_transaction_that_stays_open_is_chained_when_it_ends(connect: Connect) -> None:
    conn, slow = await connect(), await connect()
    async with slow.transaction():
        await audit.append(slow, [entry(1, dataset="slow")])
        await audit.append(conn, [entry(2, dataset="quick")])
        await audit.chain(conn)
        assert [row.pos for row in await rows(conn, dataset="slow")] == []
        await audit.verify(conn)
    assert await audit.chain(conn) == 1
    [late], [early] = await rows(conn, dataset="slow"), await rows(conn, dataset="quick")
    assert late.id < early.id
    assert late.pos == (early.pos or 0) + 1
    assert await audit.verify(conn) == await audit.head(conn)


async def test_a_restored_database_goes_on_with_its_chain(connect: Connect) -> None:
    """Its transaction ids mean nothing any more; rows without a place get one, and later ones too."""
    conn = await connect()
    await writing.publish(conn, ITEM)
    await audit.chain(conn)
    reached = await audit.head(conn)
    await audit.append(conn, [entry(n) for n in range(5)])
    await conn.execute("UPDATE fedstac.feed_state SET snap = '999999999:999999999:'")
    assert await feed.fork_if_restored(conn) is not None
    assert (await audit.head(conn)).pos == reached.pos + 5
    await audit.append(conn, [entry(9)])
    assert await audit.chain(conn) == 1
    assert await audit.at(conn, reached.pos) == reached
    assert await audit.verify(conn) == await audit.head(conn)


# --- tampering: the statement, and the first position at which it shows

AT = "(SELECT id FROM fedstac.audit_chain WHERE pos = {})"
AGAIN = """UPDATE fedstac.audit_chain c SET hash = n.hash FROM (
               SELECT c.pos, fedstac.audit_linked(decode(repeat('00', 32), 'hex'), fedstac.audit_text(a, c.pos))
                             OVER (ORDER BY c.pos) AS hash
               FROM fedstac.audit_chain c JOIN fedstac.audit a USING (id)) n WHERE n.pos = c.pos;
           UPDATE fedstac.audit_head SET (pos, hash) = (SELECT pos, hash FROM fedstac.audit_chain
                                                        ORDER BY pos DESC LIMIT 1);"""
CUT = f"DELETE FROM fedstac.audit WHERE id >= {AT.format(15)}; DELETE FROM fedstac.audit_chain WHERE pos >= 15;"
SWAPPED = """UPDATE fedstac.audit_chain SET pos = -5 WHERE pos = 5;
             UPDATE fedstac.audit_chain SET pos = 5 WHERE pos = 6;
             UPDATE fedstac.audit_chain SET pos = 6 WHERE pos = -5;"""
SHIFTED = """UPDATE fedstac.audit_chain SET pos = -pos WHERE pos > 5;
             UPDATE fedstac.audit_chain SET pos = -pos {} WHERE pos < 0; UPDATE fedstac.audit_head SET pos = pos {};"""
TAMPERING = {
    "another actor": (f"UPDATE fedstac.audit SET actor = 'eve' WHERE id = {AT.format(5)}", 5),
    "another time": (f"UPDATE fedstac.audit SET at = at - interval '1 microsecond' WHERE id = {AT.format(1)}", 1),
    "no digest": (f"UPDATE fedstac.audit SET digest_before = NULL WHERE id = {AT.format(7)}", 7),
    "null for empty": (f"UPDATE fedstac.audit SET rule = '' WHERE id = {AT.format(8)}", 8),
    "another outcome in the last": (f"UPDATE fedstac.audit SET outcome = 'done' WHERE id = {AT.format(20)}", 20),
    "one column's text in the next": (
        f"UPDATE fedstac.audit SET collection = '', dataset = collection || dataset WHERE id = {AT.format(4)}", 4,
    ),
    "changed, with a hash that fits": (
        f"""UPDATE fedstac.audit SET actor = 'eve' WHERE id = {AT.format(5)};
            UPDATE fedstac.audit_chain c SET hash = sha256((SELECT hash FROM fedstac.audit_chain WHERE pos = 4) ||
            convert_to(fedstac.audit_text(a, 5), 'UTF8')) FROM fedstac.audit a WHERE a.id = c.id AND c.pos = 5""", 6,
    ),
    "a row removed": (f"DELETE FROM fedstac.audit WHERE id = {AT.format(5)}", 5),
    "a row and its place removed": (
        f"DELETE FROM fedstac.audit WHERE id = {AT.format(5)}; DELETE FROM fedstac.audit_chain WHERE pos = 5", 5,
    ),
    "removed, and the gap closed": (
        f"""DELETE FROM fedstac.audit WHERE id = {AT.format(5)}; DELETE FROM fedstac.audit_chain WHERE pos = 5;
            {SHIFTED.format("- 1", "- 1")}""", 5,
    ),
    "the first removed": (
        f"DELETE FROM fedstac.audit WHERE id = {AT.format(1)}; DELETE FROM fedstac.audit_chain WHERE pos = 1", 1,
    ),
    "cut off": (CUT, 15),
    "emptied": ("TRUNCATE fedstac.audit, fedstac.audit_chain", 1),
    "the places forgotten": ("TRUNCATE fedstac.audit_chain; UPDATE fedstac.audit_head SET pos = 0, hash = '\\x00'", 1),
    "the head gone": ("DELETE FROM fedstac.audit_head", 0),
    "the head moved back": ("UPDATE fedstac.audit_head SET pos = 12", 13),
    "put in without a place": (
        """INSERT INTO fedstac.audit (xid, actor, action, collection, dataset, outcome)
           VALUES ('2', 'eve', 'publish', 'c', 'd', 'new')""", 21,
    ),
    "put in with a place": (
        f"""{SHIFTED.format("+ 1", "+ 1")}
            INSERT INTO fedstac.audit (xid, actor, action, collection, dataset, outcome)
            VALUES ('2', 'eve', 'publish', 'c', 'd', 'new');
            INSERT INTO fedstac.audit_chain SELECT 6, max(id), sha256('x') FROM fedstac.audit""", 6,
    ),
    "places swapped": (SWAPPED, 5),
    "texts swapped": (
        f"""UPDATE fedstac.audit a SET dataset = b.dataset FROM fedstac.audit b
            WHERE (a.id, b.id) IN (({AT.format(5)}, {AT.format(6)}), ({AT.format(6)}, {AT.format(5)}))""", 5,
    ),
}  # fmt: skip


@pytest.fixture
async def chain(connect: Connect) -> Connection:
    """A connection to a log of 20 rows with places."""
    conn: Connection = await connect()
    await audit.chain(conn)
    await audit.append(conn, [entry(n) for n in range(20 - (await audit.head(conn)).pos)])
    await audit.chain(conn)
    assert (await audit.head(conn)).pos == 20
    return conn


@pytest.mark.parametrize("kind", TAMPERING)
async def test_tampering_is_found_at_its_place(
    chain: Connection, as_superuser: Callable[[str], None], kind: str
) -> None:
    statement, pos = TAMPERING[kind]
    assert await audit.verify(chain) == await audit.head(chain)
    as_superuser(statement)
    with pytest.raises(ChainBroken) as broken:
        await audit.verify(chain)
    assert broken.value.pos == pos
    assert "I7" in {violation.name for violation in await invariants.check(chain)}


@pytest.mark.parametrize("kind", ["cut off", "another actor", "places swapped", "a row and its place removed"])
async def test_who_writes_the_whole_chain_anew_is_found_by_an_earlier_head(
    chain: Connection, as_superuser: Callable[[str], None], kind: str
) -> None:
    kept = await audit.head(chain)
    as_superuser(TAMPERING[kind][0])
    if "removed" in kind:
        as_superuser(SHIFTED.format("- 1", "- 1"))
    as_superuser(AGAIN)
    assert (await audit.verify(chain)).pos <= 20  # by itself it is whole
    assert await audit.at(chain, kept.pos) != kept
    assert await audit.at(chain, 0) == START


async def test_rows_of_before_the_chain_get_their_places(
    west: Node, connect: Connect, as_superuser: Callable[[str], None]
) -> None:
    """What a database has when the migration runs: xid 1, as the new column's default says."""
    conn = await connect()
    await audit.append(conn, [entry(n) for n in range(30)])
    as_superuser("UPDATE fedstac.audit SET xid = '1'")
    rows_there = await conn.fetchval("SELECT count(*) FROM fedstac.audit")
    assert await audit.chain(conn) == rows_there
    assert (await audit.verify(conn)).pos == rows_there
