"""A changed policy file, brought to the datasets that are stored."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson

from fedstac.bootstrap import Node
from fedstac.db import feed, invariants
from fedstac.db.connections import Connection
from fedstac.domain.policy import Level, Policy, ProjectLevel
from fedstac.workers import leveling
from fedstac.workers.leveling import LevelCounts
from tests.db import writing
from tests.db.writing import ANNA


async def levels_of(conn: Connection) -> dict[str, tuple[str, bool, bool]]:
    """Return each dataset with its level, whether searches find it, and whether it is the latest."""
    rows = await conn.fetch(
        """SELECT r.id, r.access, i.id IS NOT NULL AS is_found, r.latest FROM fedstac.record r
           LEFT JOIN pgstac.items i ON i.collection = r.collection AND i.id = r.id"""
    )
    return {row["id"]: (row["access"], row["is_found"], row["latest"]) for row in rows}


def asking(level: Level) -> Policy:
    return replace(writing.RULES.policy, levels=(ProjectLevel(frozenset(("plain",)), level),))


async def test_stored_datasets_follow_the_policy_and_their_own_level_stays(node: Node, conn: Connection) -> None:
    await writing.create_collections(node, "plain")
    opened, private = writing.plain(1), writing.plain(2)
    private = {**private, "properties": {**private["properties"], "fedstac:access": "private"}}
    for item in (opened, private):
        await writing.publish(conn, {**item, "bbox": [0, 0, 1, 1]})

    async def apply(level: Level, *, is_rehearsal: bool = False) -> LevelCounts:
        rules = replace(writing.RULES, policy=asking(level))
        return await leveling.apply_levels(conn, rules, "plain", ANNA, is_rehearsal=is_rehearsal)

    hidden = ("private", False, False)
    assert await levels_of(conn) == {opened["id"]: ("open", True, True), private["id"]: hidden}
    assert await apply(Level.CONTROLLED, is_rehearsal=True) == LevelCounts(2, 1, 0)
    assert (await levels_of(conn))[opened["id"]][0] == "open"
    assert await apply(Level.CONTROLLED) == LevelCounts(2, 1, 0)
    assert await levels_of(conn) == {opened["id"]: ("controlled", True, True), private["id"]: hidden}
    assert await apply(Level.CONTROLLED) == LevelCounts(2, 0, 0), "the second time changes nothing"
    assert await apply(Level.PRIVATE) == LevelCounts(2, 1, 0)
    assert await levels_of(conn) == {opened["id"]: hidden, private["id"]: hidden}
    assert await apply(Level.OPEN) == LevelCounts(2, 1, 0)
    assert await levels_of(conn) == {opened["id"]: ("open", True, True), private["id"]: hidden}
    await feed.sequence(conn)
    texts = [row["event"] for row in await conn.fetch(
        "SELECT event FROM fedstac.outbox WHERE dataset = $1 ORDER BY id", opened["id"])]  # fmt: skip
    data: list[dict[str, Any]] = [orjson.loads(text)["data"] for text in texts]
    assert [(each.get("access"), each.get("previous_access")) for each in data] == [
        (None, None), ("controlled", "open"), ("private", "controlled"), (None, "private"),
    ]  # fmt: skip
    assert await invariants.check(conn) == []
