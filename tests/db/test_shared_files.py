"""One file in several datasets: what a deletion says of its files, in whatever order and company the datasets go."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from fedstac import publication
from fedstac.bootstrap import Node
from fedstac.db import connections
from fedstac.db.connections import Connection
from fedstac.demo import sample
from fedstac.domain.actions import Work
from fedstac.domain.actions.delete import Delete, Purge
from fedstac.domain.actions.mark import Mark, Unmark
from fedstac.domain.actions.target import Target
from fedstac.domain.model import Outcome
from tests.db import writing
from tests.db.writing import ANNA, Item

A, B, C = sample.items(3, versions=1)
KEY = next(key for key, asset in A["assets"].items() if "file:checksum" in asset)


@pytest.fixture
async def west(node: Node) -> Node:
    await writing.create_collections(node, "CMIP6")
    return node


@pytest.fixture
async def first(west: Node, dsn: str) -> AsyncIterator[Connection]:
    conn = await connections.connect(dsn)
    yield conn
    await asyncio.wait_for(conn.close(), 10)


@pytest.fixture
async def second(west: Node, dsn: str) -> AsyncIterator[Connection]:
    conn = await connections.connect(dsn)
    yield conn
    await asyncio.wait_for(conn.close(), 10)


def sharing(item: Item, other: Item, *, by: str) -> Item:
    """Return the dataset with the address or the checksum of one file of another one."""
    changed = copy.deepcopy(item)
    key = next(key for key, asset in changed["assets"].items() if "file:checksum" in asset)
    changed["assets"][key][by] = other["assets"][KEY][by]
    return changed


def target(item: Item) -> Target:
    return Target(item["collection"], item["id"], writing.draft(item).lineage)


async def mark(conn: Connection, *items: Item) -> None:
    """Mark datasets; everybody has done their part at once."""
    work = [Work(Mark(target(item), ANNA), ANNA.name, "mark") for item in items]
    assert {receipt.outcome for receipt in await publication.perform(conn, writing.RULES, work)} == {Outcome.MARKED}
    await conn.execute("UPDATE fedstac.deletion SET grace_until = marked_at - interval '1 second'")
    await conn.execute("UPDATE fedstac.deletion_dependency SET state = 'waived'")


def deleting(*items: Item) -> list[Work]:
    return [Work(Delete(target(item), ANNA), ANNA.name, "delete") for item in items]


async def delete(conn: Connection, *items: Item) -> list[dict[str, Any]]:
    """Delete datasets in one batch; return the data of their events."""
    receipts = await publication.perform(conn, writing.RULES, deleting(*items))
    assert {receipt.outcome for receipt in receipts} == {Outcome.DELETED}
    return [await data_of(conn, item) for item in items]


async def data_of(conn: Connection, item: Item) -> dict[str, Any]:
    text = await conn.fetchval(
        "SELECT event FROM fedstac.outbox WHERE dataset = $1 AND type = 'org.fedstac.dataset.deleted.v1'", item["id"]
    )
    data: dict[str, Any] = orjson.loads(text)["data"]
    return data


def keys(files: list[dict[str, str]]) -> set[str]:
    return {file["asset"] for file in files}


@pytest.mark.parametrize("by", ["href", "file:checksum"])
async def test_a_file_is_unreferenced_when_the_last_dataset_goes_that_has_it(first: Connection, by: str) -> None:
    other = sharing(B, A, by=by)
    await writing.publish(first, A, other)
    await mark(first, A, other)
    [data] = await delete(first, A)
    assert data["still_referenced"] == [
        {"asset": KEY, "href": A["assets"][KEY]["href"], "checksum": A["assets"][KEY]["file:checksum"]}
    ]
    assert keys(data["unreferenced"]) == set(A["assets"]) - {KEY}
    assert B["id"] not in orjson.dumps(data).decode()  # it is hidden
    [data] = await delete(first, other)
    assert (keys(data["unreferenced"]), data["still_referenced"]) == (set(other["assets"]), [])
    assert await first.fetchval("SELECT count(*) FROM fedstac.file_reference") == 0


async def test_of_datasets_that_go_together_the_last_one_leaves_the_file(first: Connection) -> None:
    other = sharing(B, A, by="href")
    await writing.publish(first, A, other, C)
    await mark(first, A, other)
    one, two = await delete(first, A, other)
    assert keys(one["still_referenced"]) == {KEY}
    assert two["still_referenced"] == []


async def test_of_two_who_delete_at_once_one_leaves_the_file(
    first: Connection, second: Connection, conn: Connection
) -> None:
    other = sharing(B, A, by="href")
    await writing.publish(first, A, other)
    await mark(first, A, other)
    transaction = first.transaction()
    await transaction.start()
    one, *_ = await delete(first, A)
    task = asyncio.create_task(publication.perform(second, writing.RULES, deleting(other)))
    await writing.is_blocked(conn, second, first)
    await transaction.commit()
    await task
    assert keys(one["still_referenced"]) == {KEY}
    assert (await data_of(conn, other))["still_referenced"] == []


async def test_other_addresses_and_marks_taken_back_count_at_once(first: Connection) -> None:
    other = sharing(B, A, by="href")
    await writing.publish(first, A, B)
    await writing.publish(first, other)  # the same files, elsewhere
    await mark(first, A, other)
    await publication.perform(first, writing.RULES, [Work(Unmark(target(other), ANNA), ANNA.name, "unmark")])
    [data] = await delete(first, A)
    assert keys(data["still_referenced"]) == {KEY}


async def test_a_purge_takes_the_files_out_of_the_log(first: Connection) -> None:
    await writing.publish(first, A)
    await mark(first, A)
    await delete(first, A)
    await publication.perform(first, writing.RULES, [Work(Purge(target(A), ANNA), ANNA.name, "purge")])
    log = "".join(row["event"] for row in await first.fetch("SELECT event FROM fedstac.outbox"))
    assert A["assets"][KEY]["href"] not in log
    assert A["assets"][KEY]["file:checksum"] not in log


async def test_the_marks_of_what_was_here_before_the_migration_are_those_that_are_written(
    first: Connection,
) -> None:
    await writing.publish(first, A, B, C)
    before = await first.fetch("SELECT * FROM fedstac.file_reference ORDER BY id")
    await first.execute("DELETE FROM fedstac.file_reference")
    await first.execute(
        r"""INSERT INTO fedstac.file_reference (collection, id, marks)
           SELECT r.collection, r.id, array_agg(DISTINCT
               ('x' || encode(substr(sha256(convert_to(found[1], 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint)
           FROM fedstac.record r
           CROSS JOIN LATERAL regexp_matches(r.document, '"(?:href|file:checksum)":"([^"\\]+)"', 'g') found
           GROUP BY r.collection, r.id"""
    )
    assert await first.fetch("SELECT * FROM fedstac.file_reference ORDER BY id") == before
