"""Warnings of what publishing finds beside other datasets, and that they give nothing hidden away."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from fedstac import consequences, publication
from fedstac.bootstrap import Node
from fedstac.db import file_marks, migrations
from fedstac.db.connections import Connection
from fedstac.demo import sample
from fedstac.domain import crosschecks
from fedstac.domain.actions import Work
from fedstac.domain.actions.mark import Mark
from fedstac.domain.actions.target import Target
from fedstac.domain.errors import Severity
from fedstac.domain.model import Outcome, Receipt
from tests.db import writing
from tests.db.writing import ANNA, Connect
from tests.support.places import REPOSITORY

Item = dict[str, Any]
ITEM, OTHER, THIRD = sample.items(3, versions=1)


def rules(receipt: Receipt) -> list[str]:
    assert receipt.problem is None
    assert all(finding.severity is Severity.WARNING for finding in receipt.findings)
    return [finding.rule for finding in receipt.findings]


def with_files_of(item: Item, source: Item) -> Item:
    """Return the item, with the checksums and tracking ids of another one's files, as many as it has files."""
    changed = copy.deepcopy(item)
    files = [asset for asset in source["assets"].values() if "file:checksum" in asset]
    globus = changed["assets"]["globus"]
    changed["assets"] = {
        f"{n}.nc": {**asset, "href": f"https://example.org/{item['id']}/{n}.nc"} for n, asset in enumerate(files)
    } | {"globus": globus}
    return changed


@pytest.fixture
async def conn(west: Node, connect: Connect) -> Connection:
    connection: Connection = await connect()
    return connection


async def test_the_same_files_in_another_dataset_are_named(conn: Connection) -> None:
    assert [rules(receipt) for receipt in await writing.publish(conn, ITEM, OTHER)] == [[], []]
    [receipt] = await writing.publish(conn, with_files_of(THIRD, ITEM))
    assert rules(receipt) == ["same-files"]
    assert ITEM["id"] in receipt.findings[0].message
    assert OTHER["id"] not in receipt.findings[0].message
    [again] = await writing.publish(conn, with_files_of(THIRD, ITEM))
    assert (again.outcome, again.findings) == (Outcome.IDENTICAL, ())


async def test_datasets_of_one_batch_are_compared_too(conn: Connection) -> None:
    first, second = await writing.publish(conn, ITEM, with_files_of(THIRD, ITEM))
    assert (rules(first), rules(second)) == ([], ["same-files"])


async def test_one_tracking_id_in_two_datasets_is_named(conn: Connection) -> None:
    await writing.publish(conn, ITEM)
    changed = copy.deepcopy(OTHER)
    file = next(asset for asset in changed["assets"].values() if "file:checksum" in asset)
    taken = next(asset for asset in ITEM["assets"].values() if "file:checksum" in asset)["cmip6:tracking_id"]
    file["cmip6:tracking_id"] = taken
    [receipt] = await writing.publish(conn, changed)
    assert rules(receipt) == ["shared-tracking-id"]
    assert f"the tracking id {taken} is also that of a file of {ITEM['id']}" == receipt.findings[0].message


async def test_versions_of_one_dataset_may_share_files(conn: Connection) -> None:
    later = copy.deepcopy(ITEM)
    later["id"] = ITEM["id"][:-8] + "20300101"
    receipts = await writing.publish(conn, ITEM, later)
    assert [receipt.outcome for receipt in receipts] == [Outcome.NEW, Outcome.NEWER]
    assert [rules(receipt) for receipt in receipts] == [[], []]


async def test_what_is_hidden_is_never_named(conn: Connection) -> None:
    await writing.publish(conn, ITEM)
    target = Target(ITEM["collection"], ITEM["id"], writing.draft(ITEM).lineage)
    marked = Work(Mark(target, ANNA), ANNA.name, "mark")
    await publication.perform(conn, writing.RULES, [marked])
    [receipt] = await writing.publish(conn, with_files_of(OTHER, ITEM))
    assert rules(receipt) == []
    # nor what is hidden by the same batch
    hidden = with_files_of(THIRD, ITEM)
    work = writing.work(hidden)
    target = Target(hidden["collection"], hidden["id"], writing.draft(hidden).lineage)
    work += [Work(Mark(target, ANNA), ANNA.name, "mark"), *writing.work(with_files_of(sample_of(9), ITEM))]
    receipts = await publication.perform(conn, writing.RULES, work)
    [finding] = receipts[2].findings
    assert OTHER["id"] in finding.message


def sample_of(seed: int) -> Item:
    [item] = sample.items(1, versions=1, seed=seed)
    return item


async def test_a_newer_version_that_covers_less_is_named(conn: Connection) -> None:
    def version(day: int, start: str, end: str) -> Item:
        changed = writing.version(ITEM, day)
        changed["properties"] |= {"start_datetime": f"{start}T00:00:00Z", "end_datetime": f"{end}T00:00:00Z"}
        return changed

    whole, quarter = version(20180912, "1850-01-01", "1853-01-01"), version(20180913, "1853-01-01", "1854-01-01")
    first, second = await writing.publish(conn, whole, quarter)
    assert rules(first) == []
    assert rules(second) == ["coverage"]
    for part in (whole["id"], "1850-01-01T00:00:00Z to 1853-01-01T00:00:00Z", quarter["id"], "1853-01-01T00:00:00Z"):
        assert part in second.findings[0].message
    [third] = await writing.publish(conn, version(20180914, "1850-01-01", "1854-01-01"))
    assert rules(third) == []
    [older] = await writing.publish(conn, version(20180101, "1800-01-01", "1854-01-01"))
    assert (older.outcome, rules(older)) == (Outcome.OLDER, ["coverage"])


async def test_a_rehearsal_warns_and_leaves_nothing(conn: Connection) -> None:
    await writing.publish(conn, ITEM)
    work = writing.work(with_files_of(OTHER, ITEM))
    seen: list[Receipt] = []

    async def see(receipts: list[Receipt]) -> None:
        seen.extend(receipts)

    for _ in range(2):
        await publication.rehearse(conn, writing.RULES, [one.command.target for one in work], work.__getitem__, see)
    assert [rules(receipt) for receipt in seen] == [["same-files"], ["same-files"]]
    assert await conn.fetchval("SELECT count(DISTINCT id) FROM fedstac.file_mark") == 1


async def test_a_mark_is_noted_for_so_many_datasets_and_no_more(conn: Connection) -> None:
    items = sample.items(12, versions=1, seed=3)
    for item in items:
        [receipt] = await writing.publish(conn, with_files_of(item, ITEM))
        assert len(receipt.findings) <= consequences.MOST_NAMED
    marks = crosschecks.marks(writing.draft(ITEM).text)
    holders = await file_marks.holders(conn, marks)
    assert len(holders) == file_marks.MOST_HOLDERS * len(marks)


async def test_the_migration_notes_what_publishing_does(conn: Connection, dsn: str) -> None:
    await writing.publish(conn, ITEM, OTHER, with_files_of(THIRD, ITEM))
    query = "SELECT mark, collection, id FROM fedstac.file_mark ORDER BY id, mark"
    written = await conn.fetch(query)
    [text] = [one.text for one in migrations.read(REPOSITORY / "migrations") if one.name.endswith("_file_marks.sql")]
    backfill = text[text.index("CREATE FUNCTION") : text.index("CREATE INDEX")]
    await conn.execute("DELETE FROM fedstac.file_mark")
    await conn.execute(backfill)
    assert await conn.fetch(query) == written
