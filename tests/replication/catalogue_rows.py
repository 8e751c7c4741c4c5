"""A catalogue of a replica node for tests of its policy: datasets of four models, in several states."""

from __future__ import annotations

import random
from typing import Any, Final

import orjson

from fedstac.db.connections import Connection
from fedstac.db.replica.datasets import DatasetKey, NewestEvent
from fedstac.domain.replication.dataset_files import digest_of, files_of, total_bytes
from fedstac.domain.replication.policy import ReplicaPolicy
from fedstac.domain.replication.reacting import EventState
from fedstac.replication import applying, intake

SEED: Final = 45
MODELS: Final = ("A-1", "B-2", "C-3", "D-4")
NOTHING_WANTED: Final = "version: 1\nrules: []\nsources: []\n"
POLICY: Final = """\
version: 1
sources: []
tiers: {archive: /archive}
rules:
  - {name: drafts, where: "title LIKE 'Draft%'", action: ignore}
  - name: model A
    where: collection = 'CMIP7' AND "cmip7:source_id" = 'A-1' AND datetime >= DATE('2000-01-01')
    action: replicate
    priority: 5
    on_superseded: tier
    superseded_tier: archive
  - {name: model B, where: "\\"cmip7:source_id\\" = 'B-2'", action: restrict}
  - {name: model C, where: "\\"cmip7:source_id\\" IN ('C-3') AND id <> 'd7'", action: replicate, on_retracted: purge,
     check: [/bin/true, a b]}
"""


def document(n: int, chance: random.Random) -> dict[str, Any]:
    return {
        "type": "Feature", "id": f"d{n}", "collection": chance.choice(["CMIP7", "CMIP6"]),
        "geometry": {"type": "Point", "coordinates": [10, 50]},
        "properties": {
            "datetime": chance.choice(["1999-01-01T00:00:00Z", "2020-01-01T00:00:00Z"]),
            "title": chance.choice(["Draft 1", "Final", "Final"]), "cmip7:source_id": chance.choice(MODELS),
        },
        "assets": {
            f"f{m}": {"href": f"https://a.example/d{n}/f{m}.nc", "file:size": 100 + n,
                      "file:checksum": "1220" + f"{n * 10 + m:064x}"}
            for m in range(2)
        },
    }  # fmt: skip


def event(n: int, chance: random.Random) -> NewestEvent:
    content = document(n, chance)
    files = files_of(content)
    state = chance.choice([EventState.PUBLISHED] * 8 + [EventState.RETRACTED, EventState.MARKED])
    return NewestEvent(
        DatasetKey(content["collection"], content["id"]), "west", content["id"], 1, n + 1, n + 1, f"e{n}", state,
        state is EventState.PUBLISHED and chance.random() < 0.8,
        {"reason": "wrong"} if state is EventState.RETRACTED else None, orjson.dumps(content).decode(),
        total_bytes(files), len(files), digest_of(files),
    )  # fmt: skip


async def take_in(conn: Connection, policy: ReplicaPolicy, count: int) -> None:
    """Take in events of datasets, as the follower does."""
    chance = random.Random(SEED)
    events = []
    for n in range(count):
        newest = event(n, chance)
        content = orjson.loads(newest.document or "")
        state = applying.state_of(newest.state, newest.retraction)
        decision = policy.decide(content, newest.key.collection, state, latest=newest.latest)
        events.append(intake.judge(newest, decision))
    async with conn.transaction():
        await intake.take(conn, events, policy_digest=policy.digest)


async def queued(conn: Connection) -> dict[str, str]:
    rows = await conn.fetch("SELECT id, rule FROM fedstac.replica_dataset WHERE state = 'queued' ORDER BY id")
    return {row["id"]: row["rule"] for row in rows}
