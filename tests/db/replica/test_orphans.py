"""What an index node's records say about copies: datasets with too few, files with none."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from fedstac.bootstrap import Node
from fedstac.db.connections import Connection
from fedstac.db.replica import orphans
from fedstac.db.replica.orphans import ScarceDataset
from fedstac.demo import sample
from tests.db import writing
from tests.support.commands import Fedstac

Item = dict[str, Any]


def files_of(item: Item) -> list[str]:
    return sorted(key for key, asset in item["assets"].items()
                  if "file:checksum" in asset and asset.get("protocol") != "kerchunk")  # fmt: skip


def copied_to(item: Item, node: str, keys: list[str]) -> Item:
    """Return a dataset of which a node has some of the files."""
    changed = copy.deepcopy(item)
    for key in keys:
        asset = changed["assets"][key]
        entry = {name: asset[name] for name in ("file:size", "file:checksum") if name in asset}
        asset.setdefault("alternate", {})[node] = {
            "href": f"https://{node}.example/{key}", "alternate:name": node, **entry
        }  # fmt: skip
    return changed


@pytest.fixture
async def catalogue(west: Node, conn: Connection) -> list[Item]:
    """Five datasets: of no copy, of part of one, of one, of two, and one retracted without any."""
    none, partial, one, two, gone = (dict(item) for item in sample.items(5, versions=1))
    for item in (none, partial, one, two, gone):
        for asset in item["assets"].values():
            asset.pop("alternate", None)
        first = files_of(item)[0]
        item["assets"] = {**item["assets"], "second": {**copy.deepcopy(item["assets"][first]),
                                                       "file:checksum": "1220" + "ab" * 32}}  # fmt: skip
    datasets = [
        none, copied_to(partial, "east", files_of(partial)[:1]), copied_to(one, "east", files_of(one)),
        copied_to(copied_to(two, "east", files_of(two)), "south", files_of(two)), gone,
    ]  # fmt: skip
    await writing.publish(conn, *datasets)
    await conn.execute("UPDATE fedstac.record SET state = 'retracted', latest = false WHERE id = $1", gone["id"])
    return datasets


async def scarce(conn: Connection, copies: int, *, retracted: bool = False) -> dict[str, ScarceDataset]:
    pages = [page async for page in orphans.pages(conn, copies, include_retracted=retracted)]
    assert sum(page.looked_at for page in pages) == 5
    return {dataset.id: dataset for page in pages for dataset in page.datasets}


async def test_datasets_with_too_few_copies_are_listed_with_the_files_that_have_none(
    catalogue: list[Item], conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphans, "PAGE", 2)
    none, partial, one, _, gone = catalogue
    at_least_one = await scarce(conn, 1)
    assert at_least_one.keys() == {none["id"], partial["id"]}
    assert [file.asset for file in at_least_one[none["id"]].orphans] == files_of(none)
    dataset = at_least_one[partial["id"]]
    assert (dataset.copies, list(dataset.partial_nodes), dataset.files) == (0, ["east"], len(files_of(partial)))
    assert [file.asset for file in dataset.orphans] == files_of(partial)[1:]
    at_least_two = await scarce(conn, 2)
    assert at_least_two.keys() == {none["id"], partial["id"], one["id"]}
    assert (at_least_two[one["id"]].copies, at_least_two[one["id"]].orphans) == (1, [])
    assert (await scarce(conn, 1, retracted=True)).keys() == {none["id"], partial["id"], gone["id"]}


async def test_the_command_lists_files_and_exits_by_the_result(
    catalogue: list[Item], conn: Connection, fedstac: Fedstac, dsn: str
) -> None:
    listing = await fedstac("replica", "orphans", "--files", "-o", "ndjson", FEDSTAC_DSN=dsn)
    none, partial, *_ = catalogue
    assert listing.code == 1, listing.stderr
    assert sorted((row["id"], row["asset"]) for row in listing.lines) == sorted(
        [(none["id"], key) for key in files_of(none)] + [(partial["id"], key) for key in files_of(partial)[1:]]
    )
    table = await fedstac("replica", "orphans", "--copies", "3", "-c", "CMIP6", FEDSTAC_DSN=dsn)
    assert table.code == 1
    assert "4 datasets of 5 with fewer than 3 copies" in table.stdout
    nothing = await fedstac("replica", "orphans", "-c", "CMIP7", "-o", "json", FEDSTAC_DSN=dsn)
    assert (nothing.code, nothing.stdout) == (0, "[]\n"), nothing.stderr
