"""A snapshot in files: written and loaded by processes that are killed on the way, to equal digests, and followed on.

SOAK_RECORDS is the size of the long one; it prints how many records a second were loaded.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from fedstac.db import connections, records
from fedstac.demo import federation as federations
from fedstac.demo import sample
from fedstac.demo.federation import Federation, ProcessFailed
from fedstac.domain import documents
from fedstac.domain.events import PUBLISHED
from fedstac.domain.model import Change, Record, State
from fedstac.domain.vocabulary import DatasetName
from tests.scenarios.watching import Publisher, digests, fresh_items, settle, values
from tests.support import failpoints
from tests.support.forking import Forks
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.long
BATCH = 1_000
MOMENT = datetime(2026, 11, 1, tzinfo=UTC)


async def fill(dsn: str, count: int) -> None:
    """Write records as if they had been published; the last one of each hundred is retracted."""
    conn = await connections.connect(dsn)
    try:
        items = sample.items(count, versions=1, start=5_000_000)
        while batch := list(islice(items, BATCH)):
            changes = [change(item, number) for number, item in enumerate(batch)]
            async with conn.transaction():
                lineages = await records.lock(conn, {one.after.lineage: "west" for one in changes})
                leaves = await records.hold_leaves(conn, ["CMIP6"])
                await records.write(conn, changes, {key: one.seq + 1 for key, one in lineages.items()}, leaves)
    finally:
        await conn.close(timeout=PATIENCE)


def change(item: dict[str, Any], number: int) -> Change:
    base, _, version = item["id"].rpartition(".v")
    draft = documents.prepare(item, DatasetName(f"CMIP6/{base}", int(version)), None)
    is_retracted = number % 100 == 99
    record = Record(
        collection="CMIP6", id=item["id"], lineage=draft.lineage, origin="west", version=draft.version,
        state=State.RETRACTED if is_retracted else State.PUBLISHED, latest=not is_retracted,
        claims_latest=not is_retracted, epoch=1, seq=1, created=MOMENT, updated=MOMENT, document=draft.text,
        document_digest=draft.document_digest, files_digest=draft.files_digest, publisher="somebody",
        cv_version="6.2.60.0", replicas=draft.replicas, retraction='{"reason":"wrong"}' if is_retracted else None,
    )  # fmt: skip
    return Change(PUBLISHED, None, record, draft)


def write_snapshot(forks: Forks, running: Federation, folder: Path, **variables: str) -> int:
    """Run the command at west, and return its exit code."""
    environment = {**running.processes["serve"].environment, **variables}
    command = (*forks.program, "snapshot", "write", str(folder))
    return subprocess.run(command, env=environment, check=False, capture_output=True).returncode


def start_south(running: Federation, folder: Path, **variables: str) -> None:
    running.start(
        "south", "index-node", "--from-snapshot", str(folder), node="south", FEDSTAC_SOURCE=running.west,
        FEDSTAC_SOURCE_TOKEN=running.tokens["node:south"], FEDSTAC_PORT="0", **variables,
    )  # fmt: skip


@pytest.mark.parametrize(
    "count",
    [4_000, pytest.param(int(os.environ.get("SOAK_RECORDS", "1000000")), marks=pytest.mark.soak)],
    ids=["small", "large"],
)
def test_an_empty_node_starts_from_files_killed_on_the_way(
    running: Federation, command_forks: Forks, folder: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(federations, "START_SECONDS", max(federations.START_SECONDS, count / 500))
    asyncio.run(fill(running.database_of("west"), count))
    files = folder / f"snapshot-{count}"
    if count > 25_000:  # of one part
        assert write_snapshot(command_forks, running, files, **failpoints.environment("snapshot.part=kill")) == -9
        assert not (files / "manifest.json").exists()
    assert write_snapshot(command_forks, running, files) == 0
    running.make_database("south")
    groups, is_small = count // BATCH, count < 25_000
    kills = [f"snapshot.written=kill:{max(groups // 4, 1)}", f"snapshot.loaded=kill:{max(groups // 4, 1)}",
             "snapshot.written=kill"]  # fmt: skip
    began = time.monotonic()
    for kill in kills[:1] if is_small else kills:  # tests/db/test_snapshots.py has the others
        with suppress(ProcessFailed):
            start_south(running, files, **failpoints.environment(kill))
        assert not running.processes["south"].is_running
        running.processes.pop("south")
    start_south(running, files)
    seconds = time.monotonic() - began
    here = values(running, "SELECT count(*) FROM fedstac.record", at="south")[0]
    print(f"{here} records in {seconds:.1f} s with all starts, {here / seconds:.0f} a second; load {os.getloadavg()}")
    publisher = Publisher(running)
    publisher.publish(fresh_items(30))
    settle(running, ("south",))
    assert digests(running, "south") == digests(running, "west")
    published = [name for ids in publisher.accepted.values() for name in ids]
    query = "SELECT count(*) FROM fedstac.record WHERE id = ANY (%s)"
    assert values(running, query, published, at="south") == [len(published)]
    running.processes.pop("south").kill()
