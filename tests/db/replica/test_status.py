"""How a replica node stands, in numbers, and its datasets file by file."""

from __future__ import annotations

import orjson
import pytest

from fedstac.bootstrap import Node
from fedstac.db.connections import Connection
from fedstac.db.replica import status
from tests.db.replica.planting import PlantedFile, plant
from tests.support.commands import Fedstac

MANY = 10_000


@pytest.fixture
async def east(node: Node, conn: Connection) -> Connection:
    """A node with an announced dataset, one under way, one that waits, and one that is parked."""
    await plant(conn, "whole", [PlantedFile("a.nc", b"x" * 100), PlantedFile("b.nc", b"x" * 50)])
    busy = [PlantedFile("a.nc", b"y" * 100), PlantedFile("b.nc", b"y" * 200, "transferring"),
            PlantedFile("c.nc", b"y" * 300, "failed")]  # fmt: skip
    n = await plant(conn, "busy", busy, state="transferring", announced_at="")
    await conn.execute("""UPDATE fedstac.replica_file SET done_bytes = 40 WHERE n = $1 AND asset = 'b.nc'""", n)
    await conn.execute(
        """UPDATE fedstac.replica_file SET attempts = 3, reason = 'west.example cut it off',
               next_try = '2030-01-01T00:00Z' WHERE n = $1 AND asset = 'c.nc'""",
        n,
    )
    for id in ("closed", "closed-too"):
        await plant(conn, id, [PlantedFile("a.nc", b"z" * 10, "queued")], state="waiting", announced_at="")
    await conn.execute(
        """UPDATE fedstac.replica_dataset SET reason = 'west.example is closed', until = '2030-01-01T00:00Z'
           WHERE state = 'waiting'"""
    )
    await plant(conn, "bad", [PlantedFile("a.nc", b"z" * 10, "failed")], state="parked", announced_at="",
                reason="no source has it")  # fmt: skip
    await plant(conn, "elsewhere", [], state="catalogued", announced_at="", action="ignore", size=5000, files=2)
    return conn


async def test_the_summary_counts_what_is_here_and_what_is_to_come(east: Connection) -> None:
    stand = await status.of_node(east)
    states = {each.state: (each.datasets, each.files, each.bytes, each.done_bytes) for each in stand.states}
    assert states == {
        "transferring": (1, 3, 600, 140), "waiting": (2, 2, 20, 0), "announced": (1, 2, 150, 150),
        "parked": (1, 1, 10, 0), "catalogued": (1, 2, 5000, 0),
    }  # fmt: skip
    assert [each.state for each in stand.states][:2] == ["transferring", "waiting"]
    assert [(each.state, each.reason, each.datasets) for each in stand.reasons] == [
        ("parked", "no source has it", 1), ("waiting", "west.example is closed", 2)
    ]  # fmt: skip
    assert (stand.left_bytes, round(stand.bytes_a_second * status.PACE_SECONDS)) == (460, 250)
    assert stand.left_seconds == pytest.approx(460 / 250 * status.PACE_SECONDS)
    assert stand.last_progress is not None


async def test_an_empty_node_has_nothing_to_show(node: Node, fedstac: Fedstac, dsn: str) -> None:
    result = await fedstac("replica", "status", FEDSTAC_DSN=dsn)
    assert (result.code, result.stdout) == (0, "")
    assert "fedstac replica-node" in result.stderr


async def test_the_command_shows_the_node_its_datasets_and_their_files(
    east: Connection, fedstac: Fedstac, dsn: str
) -> None:
    table = await fedstac("replica", "status", FEDSTAC_DSN=dsn)
    assert table.code == 0, table.stderr
    assert "waiting: 2 datasets: west.example is closed, until 2030-01-01T00:00Z" in table.stdout
    assert "to come: 460 B" in table.stdout
    as_json = orjson.loads((await fedstac("replica", "status", "-o", "json", FEDSTAC_DSN=dsn)).stdout)
    assert (as_json["left_bytes"], as_json["states"]["parked"]["datasets"]) == (460, 1)
    listing = await fedstac("replica", "status", "--state", "waiting", "-o", "ndjson", FEDSTAC_DSN=dsn)
    assert [row["id"] for row in listing.lines] == ["closed", "closed-too"]
    dataset = orjson.loads((await fedstac("replica", "status", "busy", "-o", "json", FEDSTAC_DSN=dsn)).stdout)
    assert dataset["file_states"]["verified"] == {"files": 1, "bytes": 100, "done_bytes": 100}
    [failed, *others] = dataset["files_listed"]
    assert (failed["asset"], failed["attempts"], failed["reason"]) == ("c.nc", 3, "west.example cut it off")
    assert failed["next_try"] == "2030-01-01T00:00:00+00:00"
    assert [file["state"] for file in others] == ["transferring", "verified"]
    text = await fedstac("replica", "status", "busy", "--file-state", "failed", FEDSTAC_DSN=dsn)
    assert "    west.example cut it off" in text.stdout
    assert "a.nc" not in text.stdout
    unknown = await fedstac("replica", "status", "nothing", FEDSTAC_DSN=dsn)
    assert unknown.code == 3
    assert "wait until the feed is read (fedstac replica sync)" in unknown.stderr


async def test_a_dataset_of_many_files_is_paged_and_read_by_its_key(node: Node, conn: Connection) -> None:
    n = await plant(conn, "large", [], state="transferring", announced_at="", files=MANY, size=MANY * 10)
    other = await plant(conn, "other", [], state="transferring", announced_at="", files=MANY, size=MANY * 10)
    await conn.execute(
        """INSERT INTO fedstac.replica_file (n, asset, path, size, state)
           SELECT d, 'f' || lpad(i::text, 5, '0'), 'p/' || d || '/' || i, 10,
                  CASE WHEN i % 3 = 0 THEN 'verified' ELSE 'queued' END
           FROM generate_series(1, $3) i, unnest(ARRAY[$1, $2]::bigint[]) d""",
        n, other, MANY,
    )  # fmt: skip
    await conn.execute("ANALYZE fedstac.replica_file")
    assert [(each.state, each.files) for each in await status.count_files(conn, n)] == [
        ("queued", MANY - MANY // 3), ("verified", MANY // 3)
    ]  # fmt: skip
    first = await status.first_files(conn, n, ["queued", "verified"], 3)
    assert [file.asset for file in first] == ["f00001", "f00002", "f00004"]
    files = [file.asset async for file in status.every_file(conn, n, ["verified"])]
    assert (len(files), files) == (MANY // 3, sorted(files))
