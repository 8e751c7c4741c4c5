"""The commands of a replica node, one after the other, on real files: sync, status, verify and repair, sync again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from fedstac.bootstrap import Node
from fedstac.db import connections, nodes
from fedstac.db.replica import looks
from fedstac.demo.files import FileFolder, FileSizes, datasets
from fedstac.domain.events import Cursor
from fedstac.domain.replication.states import SERVED_TIER
from fedstac.workers.replica_verifying import Tiers, VerificationLimits, Verifier
from tests.support.commands import Fedstac
from tests.support.file_servers import file_server
from tests.support.forking import Forks
from tests.support.nodes import Api
from tests.support.waiting import until

POLICY = """\
version: 1
rules: [{{name: all, action: replicate}}]
sources: [{{name: west, hosts: ["{west}"], private: true}}]
"""
DATASETS, FILES = 4, 3
BASE = "https://east.example/data"

pytestmark = pytest.mark.long


async def publish(api: Api, items: list[dict[str, Any]]) -> None:
    """Publish datasets, and wait until all of their events are in the feed."""
    answer = await api.admin.post("/collections/CMIP6/items", json={"type": "FeatureCollection", "features": items})
    assert answer.status_code == 200, answer.text
    conn = await connections.connect(api.settings.dsn)

    async def are_sequenced() -> bool:
        statement = "SELECT (SELECT max(id) FROM fedstac.outbox) = (SELECT max(id) FROM fedstac.feed)"
        return bool(await conn.fetchval(statement))

    try:
        await until(are_sequenced)
    finally:
        await conn.close(timeout=10)


async def faults_of_entries(dsn: str, copies: Path) -> dict[str, int]:
    """Return what is wrong, with the federation's entries as the newest events have them."""
    conn = await connections.connect(dsn)
    try:
        tiers = Tiers({SERVED_TIER: copies}, lambda path, tier: f"{BASE}/{path}")
        look = await looks.begin(conn, looks.VERIFY, by_checksum=False, afresh=True)
        look = await Verifier(conn, "east", tiers, VerificationLimits(grace_seconds=0)).look(look)
        assert look.entries == DATASETS * FILES
        return await looks.count_faults(conn, look.id)
    finally:
        await conn.close(timeout=10)


async def test_sync_alone_fetches_verifies_and_announces_and_a_lost_file_comes_back(
    api: Api, make_database: Callable[[], str], fedstac: Fedstac, command_forks: Forks, tmp_path: Path
) -> None:
    originals, copies, policy = tmp_path / "west", tmp_path / "east", tmp_path / "policy.yaml"
    for folder in (originals, copies):
        folder.mkdir()
    token = api.tokens["node:east"]
    with file_server(command_forks.program, originals) as west:
        items = list(datasets(DATASETS, FileFolder(originals, west, FileSizes(1000, 5000), FILES, FILES)))
        await publish(api, items)
        policy.write_text(POLICY.format(west=west))
        setting = {
            "FEDSTAC_DSN": make_database(), "FEDSTAC_NODE": "east", "FEDSTAC_SOURCE": api.url,
            "FEDSTAC_SOURCE_TOKEN": token, "FEDSTAC_REPLICA_TOKEN": token, "FEDSTAC_REPLICA_POLICY": str(policy),
            "FEDSTAC_REPLICA_FOLDER": str(copies), "FEDSTAC_REPLICA_URL": BASE,
                "FEDSTAC_REPLICA_BRAKE_PERCENT": "10",  # one file of twelve is lost
        }  # fmt: skip
        first = await fedstac("replica", "sync", "-o", "json", **setting)
        assert first.code == 0, first.stderr
        result = orjson.loads(first.stdout)
        assert (result["done_files"], result["left_bytes"], result["alone"]) == (DATASETS * FILES, 0, True)
        status = orjson.loads((await fedstac("replica", "status", "-o", "json", **setting)).stdout)
        assert status["states"]["announced"]["datasets"] == DATASETS

        async def entries() -> list[Any]:
            answer = await api.admin.get(f"/collections/CMIP6/items/{items[0]['id']}")
            return [asset["alternate"]["east"]["href"] for asset in answer.json()["assets"].values()
                    if "east" in asset.get("alternate", {})]  # fmt: skip

        assert len(await until(entries)) == FILES
        verified = await fedstac("replica", "verify", "--checksums", **setting)
        assert verified.code == 0, verified.stdout + verified.stderr
        lost = next(path for path in sorted(copies.rglob("*")) if path.suffix == ".nc")
        content = lost.read_bytes()
        lost.write_bytes(bytes(len(content)))
        repaired = await fedstac("replica", "verify", "--checksums", "--repair", "-o", "ndjson", **setting)
        assert [(row["fault"], row["outcome"]) for row in repaired.lines] == [("wrong", "mended")], repaired.stderr
        assert not lost.exists()
        again = await fedstac("replica", "sync", "-o", "ndjson", **setting)
        assert again.code == 0, again.stderr
        assert again.lines[-1]["done_files"] == 1
        assert lost.read_bytes() == content
        await fedstac("replica", "sync", **setting)  # applies the events of its own announcements
        assert await faults_of_entries(setting["FEDSTAC_DSN"], copies) == {}
        status = orjson.loads((await fedstac("replica", "status", "-o", "json", **setting)).stdout)
        assert status["states"]["announced"]["datasets"] == DATASETS


async def test_sync_beside_a_running_node_leaves_the_work_to_it(
    api: Api, make_database: Callable[[], str], fedstac: Fedstac, tmp_path: Path
) -> None:
    policy, dsn = tmp_path / "policy.yaml", make_database()
    policy.write_text(POLICY.format(west="https://west.example"))
    conn = await connections.connect(dsn)
    try:
        await nodes.move(conn, "replica", "west", Cursor(1, 0))
        assert await nodes.follow_alone(conn, "replica", "west")  # as the follower of a running node does
        result = await fedstac(
            "replica", "sync", "--timeout", "1", "-o", "json", FEDSTAC_DSN=dsn, FEDSTAC_NODE="east",
            FEDSTAC_SOURCE=api.url, FEDSTAC_REPLICA_TOKEN=api.tokens["node:east"], FEDSTAC_REPLICA_POLICY=str(policy),
            FEDSTAC_REPLICA_FOLDER=str(tmp_path), FEDSTAC_REPLICA_URL=BASE,
        )  # fmt: skip
    finally:
        await conn.close(timeout=10)
    assert result.code == 1, result.stderr
    report = orjson.loads(result.stdout)
    assert (report["alone"], report["in_time"], report["feeds"]) == (False, False, 1)  # nobody has applied the events


async def test_sync_says_what_stands_in_its_way(
    node: Node, fedstac: Fedstac, make_database: Callable[[], str], tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY.format(west="https://west.example"))
    away = await fedstac(
        "replica", "sync", "-o", "json", FEDSTAC_DSN=make_database(), FEDSTAC_NODE="east",
        FEDSTAC_SOURCE="http://127.0.0.1:9", FEDSTAC_REPLICA_TOKEN="x", FEDSTAC_REPLICA_POLICY=str(policy),
        FEDSTAC_REPLICA_FOLDER=str(tmp_path), FEDSTAC_REPLICA_URL="https://east.example/data",
    )  # fmt: skip
    assert away.code == 5, away.stderr
    assert orjson.loads(away.stdout)["troubles"]


@pytest.mark.parametrize(("options", "says"), [
    (("--node", "east"), "--node is for datasets' copies: name their ids, or leave it out"),
    (("--force",), "--force and --remove-dark need --repair"),
    (("--remove-dark",), "--force and --remove-dark need --repair"),
    (("CMIP6.a", "--force"), "--force is for the node's own verification: leave out the ids"),
    (("CMIP6.a", "--afresh"), "--afresh is for the node's own verification: leave out the ids"),
    (("CMIP6.a", "--threads", "2"), "--threads is for the node's own verification: leave out the ids"),
    (("CMIP6.a", "--sample", "1"), "--sample is for the node's own verification: leave out the ids"),
    (("CMIP6.a", "--repair", "--remove-dark"), "--repair, --remove-dark are for the node's own verification"),
])  # fmt: skip
async def test_verify_refuses_options_that_would_have_no_effect(
    fedstac: Fedstac, options: tuple[str, ...], says: str
) -> None:
    refused = await fedstac("replica", "verify", *options, "-o", "json")
    assert refused.code == 2
    assert says in refused.stderr
