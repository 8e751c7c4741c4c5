"""Events of datasets for tests, taken in as the follower does, and how the datasets stand then."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import orjson

from fedstac.db.connections import Connection
from fedstac.db.replica.datasets import DatasetKey, NewestEvent
from fedstac.domain.replication.dataset_files import digest_of, files_of, total_bytes
from fedstac.domain.replication.policy import OnRetracted, ReplicaAction, ReplicaDecision
from fedstac.domain.replication.reacting import EventState
from fedstac.replication import intake

WANTED = ReplicaDecision(ReplicaAction.REPLICATE, "all")
CHECKED = ReplicaDecision(ReplicaAction.REPLICATE, "all", check=("/bin/true",))
KEPT = ReplicaDecision(ReplicaAction.REPLICATE, "all", on_retracted=OnRetracted.KEEP)
UNWANTED = ReplicaDecision(ReplicaAction.IGNORE, "none")


def event(
    id: str,
    files: Mapping[str, str],
    *,
    seq: int = 1,
    state: EventState = EventState.PUBLISHED,
    mirror: str = "",
    data: str = "",
) -> NewestEvent:
    """Return an event of a dataset with these files: the content of each by its path.

    mirror: who has copies. data: it is retracted, and this shall happen to its files.
    """
    assets = {
        f"asset{n}": {
            "href": f"https://west.example/{path}", "file:local_path": path, "file:size": len(content),
            "file:checksum": "1220" + hashlib.sha256(content.encode()).hexdigest(),
            **({"alternate": {mirror: {"href": f"https://{mirror}.example/{path}"}}} if mirror else {}),
        } for n, (path, content) in enumerate(files.items())
    }  # fmt: skip
    document = {"id": id, "collection": "CMIP6", "properties": {"datetime": "2020-01-01T00:00:00Z"}, "assets": assets}
    own = files_of(document)
    return NewestEvent(
        DatasetKey("CMIP6", id), "west", id, 1, seq, seq, f"{id}-{seq}",
        EventState.RETRACTED if data else state, not data, {"data": data} if data else None,
        orjson.dumps(document).decode(), total_bytes(own), len(own), digest_of(own),
    )  # fmt: skip


async def take(
    conn: Connection, *events: NewestEvent, decision: ReplicaDecision = WANTED, policy_digest: str = "1"
) -> None:
    async with conn.transaction():
        await intake.take(conn, [intake.judge(each, decision) for each in events], policy_digest=policy_digest)


async def reconsider(conn: Connection, newest: NewestEvent, decision: ReplicaDecision) -> None:
    async with conn.transaction():
        await intake.reconsider(conn, [intake.judge(newest, decision)], policy_digest="2")


async def bring(conn: Connection, id: str, *, state: str = "announced") -> None:
    """Let the files of a dataset be here."""
    async with conn.transaction():
        n = await conn.fetchval("SELECT n FROM fedstac.replica_dataset WHERE id = $1", id)
        await conn.execute("UPDATE fedstac.replica_file SET state = 'verified' WHERE n = $1", n)
        await conn.execute(
            """UPDATE fedstac.replica_dataset SET state = $2,
                      announced_digest = CASE WHEN $2 = 'announced' THEN files_digest END WHERE n = $1""",
            n, state,
        )  # fmt: skip


async def state_of(conn: Connection, id: str) -> tuple[str, str]:
    row = await conn.fetchrow("SELECT state, reason FROM fedstac.replica_dataset WHERE id = $1", id)
    assert row is not None
    return row["state"], row["reason"]


async def files_here(conn: Connection, id: str) -> list[tuple[str, str]]:
    """Return path and state of each file of a dataset."""
    rows = await conn.fetch(
        """SELECT path, f.state FROM fedstac.replica_file f JOIN fedstac.replica_dataset USING (n) WHERE id = $1
           ORDER BY asset""",
        id,
    )
    return [tuple(row) for row in rows]
