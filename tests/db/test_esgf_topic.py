"""An index node that follows a topic in ESGF's format: what its steps come to, in whatever order they come."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from fedstac import applying
from fedstac.bootstrap import Node
from fedstac.db import nodes
from fedstac.db.connections import Connection
from fedstac.db.esgf import MOST_WAITING
from fedstac.domain.events import DELETED, Cursor
from fedstac.domain.model import Record, State
from fedstac.messaging.dialects import esgf
from fedstac.messaging.formats import Encoder, EventFormat
from fedstac.messaging.origin import TopicOrigin
from fedstac.messaging.sources import EventPage, Offsets, RawEvent
from fedstac.workers import page_applying, pages
from fedstac.workers.esgf_topic import FOREIGN, MIXED, WAITS, EsgfHandler
from fedstac.workers.following import Follower
from tests.messaging import story
from tests.support.esgf_messages import (
    AGGREGATE,
    ANNOTATE,
    ERRATA,
    FILE,
    ID,
    ITEM,
    LATER,
    NODE,
    REPLICATE,
    RETRACT,
    SUPERSEDE,
    UNREPLICATE,
    message,
    patch,
    post,
    version,
)

Json = dict[str, Any]


class Topic(TopicOrigin):
    """A topic whose messages come in pages as a test has them; no node is behind it."""

    def __init__(self, pages: Sequence[Sequence[bytes | None]]) -> None:
        super().__init__("esgf")
        self.pages = list(pages)
        self.exceptions: list[str] = []

    async def acknowledge(
        self, through: Cursor, exceptions: Sequence[Mapping[str, str]], *, consumer: str | None = None
    ) -> None:
        self.exceptions += [each["detail"] for each in exceptions]

    async def begin(self, after: Cursor, offsets: Offsets) -> None:
        pass

    async def receive(self, after: Cursor, *, limit: int, wait: float) -> EventPage:
        if not self.pages:
            return EventPage([], after)
        page: list[RawEvent] = []
        for value in self.pages.pop(0):
            count = after.pos + len(page) + 1
            page.append(esgf.raw_event(value, origin="esgf", place=f"topic/0/{count}", count=count))
        return EventPage(page, Cursor(1, after.pos + len(page)), {"0": after.pos + len(page)})


async def follow(node: Node, *pages: Sequence[bytes | None]) -> Follower:
    """Take pages of a topic as its follower does."""
    topic = Topic(pages)
    follower = Follower(node, EsgfHandler(node, topic), topic, topic, snapshot_first=False, origin_name="esgf")
    await follower.begin()
    while await follower.step(0):
        continue
    return follower


async def here(conn: Connection) -> dict[str, tuple[str, bool]]:
    """Return state and latest of each dataset, and check that search has the same."""
    rows = await conn.fetch("SELECT id, state, latest FROM fedstac.record ORDER BY id")
    found = await conn.fetch(
        """SELECT id, content->'properties'->>'fedstac:state' AS state,
                  (content->'properties'->>'latest')::bool AS latest FROM pgstac.items ORDER BY id"""
    )
    assert [tuple(row) for row in rows] == [tuple(row) for row in found]
    return {row["id"]: (row["state"], row["latest"]) for row in rows}


async def document(conn: Connection, item_id: str = ID) -> Json:
    result: Json = json.loads(await conn.fetchval("SELECT document FROM fedstac.record WHERE id = $1", item_id))
    return result


async def parked(conn: Connection) -> list[str]:
    return [row[0] for row in await conn.fetch("SELECT detail FROM fedstac.parked_event ORDER BY subject")]


async def test_an_items_whole_life(node: Node, conn: Connection) -> None:
    await follow(node, [post(ITEM, 1)])
    assert await here(conn) == {ID: ("published", True)}
    collection = await conn.fetchrow("SELECT id, origin FROM fedstac.collection")
    assert collection is not None
    assert tuple(collection) == ("CMIP6", "esgf")
    await follow(node, [patch(REPLICATE, 2)])
    entry = (await document(conn))["assets"][FILE]["alternate"][NODE]
    assert entry["file:checksum"] == ITEM["assets"][FILE]["file:checksum"]  # a downloader reads it there
    await follow(node, [patch(UNREPLICATE, 3), patch(AGGREGATE, 4), patch(ANNOTATE, 5)])
    after = await document(conn)
    assert "alternate" not in after["assets"][FILE]
    assert "reference_file" in after["assets"]
    assert ERRATA in after["links"]
    await follow(node, [patch([{"op": "replace", "path": "/properties/description", "value": "new"}], 6)])
    await follow(node, [post(LATER, 7), patch(SUPERSEDE, 8)])
    assert await here(conn) == {ID: ("published", False), LATER["id"]: ("published", True)}
    await follow(node, [patch(RETRACT, 9, LATER["id"])])
    assert await here(conn) == {ID: ("published", False), LATER["id"]: ("retracted", False)}
    assert (await document(conn, LATER["id"]))["assets"] == LATER["assets"]  # its files stay known
    row = await conn.fetchrow("SELECT created, updated, publisher, retraction FROM fedstac.record WHERE id = $1", ID)
    assert row is not None
    assert [row["created"].minute, row["updated"].minute, row["publisher"], row["retraction"]] == [
        1,
        8,
        "someone",
        None,
    ]
    assert await parked(conn) == []


@pytest.mark.parametrize("pages", [1, 3], ids=["one page", "a page each"])
@pytest.mark.parametrize("first", [ID, LATER["id"]])
async def test_the_highest_version_is_the_latest_in_whatever_order_partitions_come(
    node: Node, conn: Connection, first: str, pages: int
) -> None:
    """v1 and v2 have keys of their own, so they come from different partitions."""
    by_id = {ID: [post(ITEM, 1), patch(SUPERSEDE, 3)], LATER["id"]: [post(LATER, 2)]}
    order = [value for name in sorted(by_id, key=lambda name: name != first) for value in by_id[name]]
    await follow(node, *([order] if pages == 1 else [[value] for value in order]))
    assert await here(conn) == {ID: ("published", False), LATER["id"]: ("published", True)}


async def test_without_the_patch_that_supersedes_it_the_lower_version_is_not_the_latest(
    node: Node, conn: Connection
) -> None:
    await follow(node, [post(LATER, 2)], [post(ITEM, 1)])
    assert await here(conn) == {ID: ("published", False), LATER["id"]: ("published", True)}
    await follow(node, [patch(RETRACT, 3, LATER["id"])])
    assert await here(conn) == {ID: ("published", False), LATER["id"]: ("retracted", False)}  # nobody claims it now


async def test_a_patch_in_the_page_of_its_item_counts(node: Node, conn: Connection) -> None:
    await follow(node, [post(ITEM, 1), patch(REPLICATE, 2), patch(ANNOTATE, 3), patch(RETRACT, 4)])
    assert await here(conn) == {ID: ("retracted", False)}
    after = await document(conn)
    assert NODE in after["assets"][FILE]["alternate"]
    assert ERRATA in after["links"]


@pytest.mark.parametrize("pages", [1, 4], ids=["one page", "a page each"])
async def test_patches_before_their_item_wait_for_it(node: Node, conn: Connection, pages: int) -> None:
    values = [patch(ANNOTATE, 2), patch(RETRACT, 3), post(LATER, 4), post(ITEM, 1)]
    await follow(node, *([values] if pages == 1 else [[value] for value in values[:-1]]))
    if pages > 1:
        assert await here(conn) == {LATER["id"]: ("published", True)}
        assert "kept and applied" in (await parked(conn))[0]
        await follow(node, values[-1:])
    assert await here(conn) == {ID: ("retracted", False), LATER["id"]: ("published", True)}
    assert ERRATA in (await document(conn))["links"]
    assert await parked(conn) == []
    assert await conn.fetchval("SELECT count(*) FROM fedstac.esgf_waiting") == 0


async def test_a_patch_that_waited_and_comes_again_with_its_item_counts_once(node: Node, conn: Connection) -> None:
    titles = [
        patch([{"op": "add", "path": "/properties/description", "value": text}], n) for n, text in enumerate("ab")
    ]
    await follow(node, titles, [post(ITEM, 3), titles[0]])
    assert (await document(conn))["properties"]["description"] == "b"


async def test_what_waits_is_bounded(node: Node, conn: Connection) -> None:
    titles = [[{"op": "add", "path": "/properties/description", "value": str(n)}] for n in range(MOST_WAITING + 10)]
    await follow(node, [patch(title, n) for n, title in enumerate(titles)])
    assert await conn.fetchval("SELECT count(*) FROM fedstac.esgf_waiting") == MOST_WAITING
    await follow(node, [post(ITEM, 0)])
    assert (await document(conn))["properties"]["description"] == str(MOST_WAITING + 9)  # the last ones stayed


async def test_what_comes_twice_changes_nothing(node: Node, conn: Connection) -> None:
    values = [post(ITEM, 1), patch(REPLICATE, 2), patch(UNREPLICATE, 3), patch(RETRACT, 4)]
    await follow(node, values)
    before = await conn.fetchrow("SELECT * FROM fedstac.record")
    await follow(node, values, [values[1], values[1]], [values[0]])
    assert await conn.fetchrow("SELECT * FROM fedstac.record") == before
    assert await parked(conn) == []


async def test_another_event_with_the_same_id_is_another_event(node: Node, conn: Connection) -> None:
    same = {"event_id": "string"}
    payload = {"collection_id": "CMIP6", "method": "PATCH", "item_id": ID}
    annotate, supersede = ({**payload, "patch": body} for body in (ANNOTATE, SUPERSEDE))
    await follow(node, [post(ITEM, 1), message(annotate, 2, **same), message(supersede, 3, **same)])
    assert await here(conn) == {ID: ("published", False)}
    assert ERRATA in (await document(conn))["links"]


async def test_a_second_post_of_an_item_leaves_it_as_its_patches_left_it(node: Node, conn: Connection) -> None:
    await follow(node, [post(ITEM, 1), patch(RETRACT, 2)])
    other = {**ITEM, "properties": {**ITEM["properties"], "description": "again"}}
    await follow(node, [post(other, 3)])
    assert await here(conn) == {ID: ("retracted", False)}
    assert "description" not in (await document(conn))["properties"]


@pytest.mark.parametrize(
    "body",
    [
        {"properties": {"latest": False}, "assets": None, "links": None, "geometry": None, "stac_extensions": None},
        {"operations": SUPERSEDE},
        {"properties": {"latest": False, "retracted": None, "datetime": None}, "id": None, "collection": None},
    ],
    ids=["nulls", "operations", "null flags"],
)
async def test_other_forms_of_a_patch(node: Node, conn: Connection, body: Json) -> None:
    await follow(node, [post(ITEM, 1)])
    before = await document(conn)
    await follow(node, [patch(body, 2)])
    assert await here(conn) == {ID: ("published", False)}
    assert await document(conn) == before


async def test_a_put_replaces_the_item(node: Node, conn: Connection) -> None:
    item = {**ITEM, "properties": {**ITEM["properties"], "description": "whole", "latest": True, "retracted": False}}
    put = {"collection_id": "CMIP6", "method": "PUT", "item_id": ID, "item": {**item, "bbox": ITEM["bbox"]}}
    await follow(node, [post(ITEM, 1), message(put, 2)])
    assert (await document(conn))["properties"]["description"] == "whole"
    assert await here(conn) == {ID: ("published", True)}


GIVE_UP = {"collection_id": "CMIP6", "method": "PATCH", "item_id": ID, "patch": SUPERSEDE}
BROKEN: Sequence[tuple[bytes | None, str]] = (
    (None, "empty"), (b"", "empty"), (b"\xff\x00{", ""), (b"[1]", "no event of ESGF"), (b'{"data":{}}', "payload"),
    (b"7", "no event of ESGF"), (b"1" * 5000, "5000 characters"), (b"[" * 200_000, ""), (b'{"a":NaN}', ""),
    (message({"collection_id": "CMIP6", "method": "DELETE", "item_id": ID}, 9), "DELETE"),
    (message({"collection_id": "CMIP6", "method": "PATCH", "item_id": 7, "patch": []}, 9), "no names"),
    (message({"collection_id": "CMIP6", "method": "POST", "item": {"id": LATER["id"]}}, 9), "STAC Item"),
    (message({"collection_id": "NOPE", "method": "POST", "item": {**LATER, "collection": "NOPE"}}, 9), "no vocabulary"),
    (message({"collection_id": "CMIP6", "method": "POST", "item": {**LATER, "id": "CMIP6.nonsense"}}, 9), "form"),
    (message({"collection_id": "CMIP6", "method": "POST", "item": {
        **LATER, "properties": {**LATER["properties"], "cmip6:source_id": "NOPE"}}}, 9), "NOPE"),
    (patch([{"op": "replace", "path": "/properties/cmip6:source_id", "value": "NOPE"}], 9), "known by"),
    (patch([{"op": "replace", "path": "/id", "value": LATER["id"]}], 9), "known by"),
    (patch([{"op": "replace", "path": "/properties/latest", "value": "no"}], 9), "true or false"),
    (patch([{"op": "remove", "path": "/properties"}], 9), "no STAC Item"),
    (patch([{"op": "remove", "path": "/assets/nothing"}], 9), "no such member"),
    (patch([{"op": "explode", "path": "/"}], 9), "operation"),
    (patch("text", 9), "no patch"), (patch(None, 9), "patch"),
    (patch([{"op": "add", "path": f"/assets/{FILE}/alternate/{NODE}", "value": 7}], 9), ""),
    (message(GIVE_UP, 9, time="soon"), "time"),
    (message(GIVE_UP, 9, fedstac={}), "epoch"),
    (message(GIVE_UP, 9, fedstac={"epoch": 1}, seq=7), "created"),
    (message(GIVE_UP, 9, fedstac={"epoch": 1}, seq=-7), "whole numbers"),
)  # fmt: skip


async def test_broken_messages_are_parked_and_the_others_go_on(node: Node, conn: Connection) -> None:
    await follow(node, [post(ITEM, 1)])
    before = await conn.fetchrow("SELECT * FROM fedstac.record WHERE id = $1", ID)
    for n, (value, reason) in enumerate(BROKEN):
        other = version(20400101 + n)
        await follow(node, [value, patch(ANNOTATE, n, other["id"]), post(other, n)])
        [detail] = await parked(conn)
        assert reason in detail, n
        assert (await document(conn, other["id"]))["links"][-1] == ERRATA, n
        await conn.execute("DELETE FROM fedstac.parked_event")
    after = await conn.fetchrow("SELECT * FROM fedstac.record WHERE id = $1", ID)
    assert before is not None
    assert after is not None
    assert dict(after) == dict(before) | {"latest": False}  # a higher version came


def random_log(chance: random.Random) -> dict[str, list[bytes]]:
    """Return, by item, what publishers and nodes may do to some versions of a dataset, each item's in its order."""
    numbers = itertools.count(1)
    titled = [{"op": "replace", "path": "/properties/description", "value": "x"}]
    bodies = (REPLICATE, UNREPLICATE, AGGREGATE, ANNOTATE, SUPERSEDE, RETRACT, titled, {"properties": {"latest": None}})
    log = {}
    for item in (ITEM, LATER, version(20310101)):
        steps = [post(item, next(numbers))]
        steps += [patch(chance.choice(bodies), next(numbers), item["id"]) for _ in range(chance.randrange(6))]
        if chance.random() < 0.2:
            steps.insert(chance.randrange(len(steps)), steps.pop(0))  # a patch comes before its item
        log[item["id"]] = steps
    return log


async def take(node: Node, conn: Connection, log: dict[str, list[bytes]], chance: random.Random) -> list[Any]:
    """Return what is shown after a topic came in one of its orders, in pages of any size, with repeats."""
    async with conn.transaction():
        await applying.forget(conn, "esgf", before_epoch=pages.BEYOND_ALL)
        await nodes.forget_progress(conn, nodes.INDEX, "esgf")
    queues = {name: list(steps) for name, steps in log.items()}
    values: list[bytes] = []
    while any(queues.values()):
        values.append(chance.choice([queue for queue in queues.values() if queue]).pop(0))
        if chance.random() < 0.2:
            values.append(chance.choice(values))
    while values:
        size = chance.randrange(1, 8)
        await follow(node, values[:size])
        values = values[size:]
        assert await conn.fetchval("SELECT count(*) FROM fedstac.record WHERE latest") <= 1
    rows = await conn.fetch(
        """SELECT id, state, latest, encode(document_digest, 'hex') AS document, updated FROM fedstac.record
           ORDER BY id"""
    )
    return [tuple(row) for row in rows]


@pytest.mark.parametrize("seed", range(6))
async def test_every_order_of_a_topics_items_ends_in_the_same(node: Node, conn: Connection, seed: int) -> None:
    await _compare_orders(node, conn, seed)


@pytest.mark.soak
async def test_many_orders_of_a_topics_items_end_in_the_same(node: Node, conn: Connection) -> None:
    for seed in range(100, 400):
        await _compare_orders(node, conn, seed)


async def _compare_orders(node: Node, conn: Connection, seed: int) -> None:
    chance = random.Random(seed)
    log = random_log(chance)
    first = await take(node, conn, log, chance)
    assert await take(node, conn, log, chance) == first, f"seed {seed}"


async def test_a_parked_post_can_be_tried_again_and_its_patches_wait_meanwhile(node: Node, conn: Connection) -> None:
    await follow(node, [post(ITEM, 1)])
    for table in ("record", "lineage"):
        await conn.execute(f"UPDATE fedstac.{table} SET origin = 'west'")
    topic = Topic([[post(LATER, 2)], [patch(ANNOTATE, 3, LATER["id"])]])
    follower = Follower(node, EsgfHandler(node, topic), topic, topic, snapshot_first=False, origin_name="esgf")
    await follower.begin()
    while await follower.step(0):
        continue
    assert sorted(await parked(conn)) == sorted([FOREIGN, WAITS])
    assert topic.exceptions == [FOREIGN, WAITS]
    for table in ("record", "lineage"):
        await conn.execute(f"UPDATE fedstac.{table} SET origin = 'esgf'")
    await conn.execute("UPDATE fedstac.parked_event SET requeued_at = now() WHERE detail = $1", FOREIGN)
    await follow(node, [b""])
    assert await here(conn) == {ID: ("published", False), LATER["id"]: ("published", True)}
    assert (await document(conn, LATER["id"]))["links"][-1] == ERRATA
    assert "empty" in (await parked(conn))[0]
    assert len(await parked(conn)) == 1


# --- what a fedstac node writes in ESGF's format ---


@pytest.mark.parametrize("seed", range(3))
async def test_an_origins_events_end_in_its_digests_however_its_items_are_mixed(
    node: Node, conn: Connection, seed: int
) -> None:
    """Each item's events come in their order, those of two versions in any; some twice."""
    chance = random.Random(seed)
    log = [event for event in story.story() if event.dataset]
    last = {event.dataset: json.loads(event.text)["data"] for event in log}
    queues: dict[str, list[bytes]] = {}
    for event in story.encoded(EventFormat.ESGF, log):
        queues.setdefault(event.key, []).append(event.value)
    values: list[bytes] = []
    while any(queues.values()):
        values.append(chance.choice([queue for queue in queues.values() if queue]).pop(0))
        if chance.random() < 0.3:
            values.append(chance.choice(values))
    cut = chance.randrange(1, len(values))
    await follow(node, values[:cut], values[cut:])
    rows = await conn.fetch("SELECT id, encode(digest, 'hex') AS digest, state, latest FROM fedstac.record")
    assert {row["id"]: (row["digest"], row["state"]) for row in rows} == {
        name: (data["digest"], data["state"]) for name, data in last.items()
    }
    assert sum(row["latest"] for row in rows) == sum(data["latest"] for data in last.values())
    assert await parked(conn) == []


async def test_a_topic_that_is_filled_again_has_the_deletion_of_a_dataset_and_nothing_before_it(
    node: Node, conn: Connection
) -> None:
    [first, *rest] = [event for event in story.story() if event.dataset]
    own = [first, *(event for event in rest if event.dataset == first.dataset)]
    blank = [replace(event, text=await conn.fetchval("SELECT fedstac.redacted_event($1)", event.text)) for event in own]
    data = json.loads(own[-1].text)["data"] | {"state": "deleted", "latest": False}
    data = {name: value for name, value in data.items() if name not in ("document", "retraction", "superseded")}
    created, updated = (datetime.fromisoformat(data[name]) for name in ("created", "updated"))
    record = Record(
        data["collection"], data["id"], own[0].key, "west", data["version"], State.DELETED, False, False, 1, 99,
        created, updated, None, b"", b"", data["publisher"], None,
    )  # fmt: skip
    envelope = json.loads(own[-1].text) | {"type": DELETED, "data": data | {"digest": record.digest.hex(), "seq": 99}}
    text = json.dumps(envelope, separators=(",", ":"))
    deletion = replace(own[-1], type=DELETED, seq=99, text=text, cursor=Cursor(1, 999))
    encoder = Encoder(EventFormat.ESGF)
    assert [event for event in (*blank, deletion) if encoder.tells(event)] == [deletion]
    assert all(Encoder(EventFormat.CLOUDEVENTS).tells(event) for event in blank)
    await follow(node, [encoder.encode(deletion, 0).value])
    assert await parked(conn) == []
    row = await conn.fetchrow("SELECT id, state, digest FROM fedstac.record")
    assert row is not None
    assert (row["id"], row["state"], row["digest"]) == (first.dataset, "deleted", record.digest)


async def test_another_programs_patch_of_an_origins_dataset_is_parked(node: Node, conn: Connection) -> None:
    [first, *_] = story.encoded(EventFormat.ESGF, story.story())
    await follow(node, [first.value, patch(RETRACT, 2, first.key)])
    assert await here(conn) == {first.key: ("published", True)}
    assert await parked(conn) == [MIXED]


async def test_what_another_origin_has_is_not_touched(node: Node, conn: Connection) -> None:
    await follow(node, [post(ITEM, 1)])
    await conn.execute("UPDATE fedstac.record SET origin = 'west'")
    await conn.execute("UPDATE fedstac.lineage SET origin = 'west'")
    await follow(node, [patch(RETRACT, 2), post(LATER, 3)])
    assert await here(conn) == {ID: ("published", True)}
    assert await parked(conn) == ["its lineage is another origin's"] * 2


async def test_a_killed_follower_goes_on_where_its_transaction_ended(
    node: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await follow(node, [post(ITEM, 1)])

    def die(name: str) -> None:
        raise SystemExit(name)

    monkeypatch.setattr(page_applying, "failpoint", die)
    with pytest.raises(SystemExit, match=r"index\.written"):
        await follow(node, [patch(RETRACT, 2)])
    monkeypatch.undo()
    assert await here(conn) == {ID: ("published", True)}
    assert await conn.fetchval("SELECT count(*) FROM fedstac.esgf_event") == 1
    follower = await follow(node, [patch(RETRACT, 2)])
    assert await here(conn) == {ID: ("retracted", False)}
    assert follower.applied_cursor == Cursor(1, 2)
