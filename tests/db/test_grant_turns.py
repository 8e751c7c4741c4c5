"""What a subscription gets of each dataset when a grant of its owner begins or ends, though no dataset changes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from fedstac import publication
from fedstac.bootstrap import Node
from fedstac.db import feed, grants, invariants, subscription_events
from fedstac.db.connections import Connection
from fedstac.db.feed import EventFilter
from fedstac.db.grants import NewGrant
from fedstac.demo import embedded
from fedstac.domain.actions import Command, Work
from fedstac.domain.actions.amend import Amend
from fedstac.domain.actions.retract import Reinstate, Retract
from fedstac.domain.actions.target import Target
from fedstac.domain.events import LEFT, UPDATED, Cursor
from fedstac.domain.grants import PASSAGE, GrantScope, GrantTarget
from fedstac.domain.patching import MergePatch
from fedstac.domain.policy import Principal
from fedstac.domain.subscriptions import ChangeKind, Subscriber, SubscriberEvent, SubscriptionFilter
from fedstac.runtime import failpoints
from fedstac.workers import delivering, grant_turns, subscribing
from fedstac.workers.subscribing import SubscriptionWish
from tests.db import writing
from tests.db.writing import ANNA
from tests.support import plans
from tests.support.databases import name_in

BERT, CARLA = (Principal(name, frozenset(("member",))) for name in ("bert", "carla"))
MINE = {"cql2": "kind = 'mine'"}
READERS = (
    Subscriber("anyone", SubscriptionFilter.parse({})), Subscriber("bert", SubscriptionFilter.parse({}), BERT),
    Subscriber("mine", SubscriptionFilter.parse(MINE), BERT), Subscriber("carla", SubscriptionFilter.parse({}), CARLA),
    Subscriber("manager", SubscriptionFilter.parse({}), ANNA),
)  # fmt: skip
SECRET = "https://secret.example/data.nc"
PROJECT = GrantTarget("plain", GrantScope.PROJECT)
ENTERED, CHANGED, GONE = ChangeKind.ENTERED, ChangeKind.CHANGED, ChangeKind.LEFT
Delivered = list[tuple[str, ChangeKind, bool]]


def thing(number: int, level: str | None, kind: str = "mine") -> dict[str, Any]:
    item = writing.plain(number)
    properties = {**item["properties"], "kind": kind, **({"fedstac:access": level} if level else {})}
    return {**item, "properties": properties, "bbox": [0, 0, 1, 1], "assets": {"data": {"href": SECRET}}}


def target(number: int) -> Target:
    return Target("plain", f"thing-{number}", f"plain/thing-{number}")


async def change(conn: Connection, *commands: Command) -> None:
    receipts = await publication.perform(conn, writing.RULES, [Work(each, "anna", "change") for each in commands])
    assert [receipt.problem for receipt in receipts] == [None] * len(commands)


async def subscribe(node: Node, conn: Connection, name: str, owner: Principal, condition: Any) -> None:
    await subscribing.put(node, conn, SubscriptionWish(name=name, filter=condition), caller=owner)


@pytest.fixture
async def conn(west: Node, connect: writing.Connect) -> Connection:
    """With datasets 1 to 3 private, 2 of another kind, 4 controlled, 5 open. A subscription of bert holds one kind."""
    opened: Connection = await connect()
    await writing.publish(
        opened, thing(1, "private"), thing(2, "private", "other"), thing(3, "private"), thing(4, "controlled"),
        thing(5, None),
    )  # fmt: skip
    await subscribe(west, opened, "mine", BERT, MINE)
    return opened


async def give(
    conn: Connection, subject: str = "bert", to: GrantTarget = PROJECT, *, begins: float = -1, ends: float = 9
) -> None:
    """Give a grant from so many hours to so many hours from now."""
    now = datetime.now(UTC)
    wish = NewGrant(subject, to, now + timedelta(hours=begins), now + timedelta(hours=ends))
    async with conn.transaction():
        await grants.give(conn, [wish], actor="anna")


async def withdraw(conn: Connection, to: GrantTarget = PROJECT) -> None:
    async with conn.transaction():
        assert await grants.withdraw_of_target(conn, to, actor="anna", reason="it is over")


async def tell_all(node: Node, conn: Connection) -> int:
    """Do the steps of all turns; return how many there were."""
    count = 0
    while await grant_turns.step(node, conn):
        count += 1
    return count


async def news(node: Node, conn: Connection, after: Cursor) -> dict[str, list[SubscriberEvent]]:
    await feed.sequence(conn)
    page = await subscription_events.look(conn, after, {"plain"})
    logged = [event for event in page.events if event.dataset is not None]
    return await delivering.deliveries(node, conn, logged, READERS)


async def delivered(node: Node, conn: Connection, after: Cursor) -> dict[str, Delivered]:
    """Return what each reader gets of the datasets after a place: id, kind, and whether the files are in it."""
    return {
        name: [(str(each.event.dataset), each.kind, SECRET in each.event.text) for each in own]
        for name, own in (await news(node, conn, after)).items()
    }


async def head(conn: Connection) -> Cursor:
    await feed.sequence(conn)
    return await feed.head(conn)


async def passages(conn: Connection) -> list[str]:
    rows = await conn.fetch("SELECT event FROM fedstac.outbox WHERE type = $1 ORDER BY id", PASSAGE)
    return [orjson.loads(row["event"])["data"]["id"] for row in rows]


async def test_what_a_grant_of_a_project_opens_enters_and_leaves_when_it_begins_and_ends(
    west: Node, conn: Connection
) -> None:
    place = await head(conn)
    await give(conn)
    await tell_all(west, conn)
    entered = [("thing-1", ENTERED, True), ("thing-3", ENTERED, True), ("thing-4", CHANGED, True)]
    of_bert = {"anyone": [], "bert": entered, "mine": entered, "carla": [], "manager": []}
    assert await delivered(west, conn, place) == of_bert
    place = await head(conn)
    await withdraw(conn)
    await tell_all(west, conn)
    left = [("thing-1", GONE, False), ("thing-3", GONE, False), ("thing-4", CHANGED, False)]
    assert await delivered(west, conn, place) == {**of_bert, "bert": left, "mine": left}
    rows = await conn.fetch("SELECT type FROM fedstac.outbox WHERE type LIKE 'org.fedstac.grant.%' ORDER BY id")
    types = [row["type"].split(".")[-2] for row in rows]
    assert types == ["given", *["passage"] * 3, "withdrawn", *["passage"] * 3], "the log has them in this order"
    assert await invariants.check(conn) == []


async def test_a_dataset_that_enters_comes_whole_and_one_that_leaves_by_its_name(west: Node, conn: Connection) -> None:
    place = await head(conn)
    await give(conn, to=GrantTarget("plain", GrantScope.LINEAGE, "plain/thing-3"))
    await tell_all(west, conn)
    [entered] = (await news(west, conn, place))["mine"]
    body = orjson.loads(entered.event.text)
    assert (entered.event.type, entered.event.key, body["id"]) == (UPDATED, "plain/thing-3", entered.source.event_id)
    assert body["data"]["document"]["assets"] == thing(3, "private")["assets"]
    assert not {"subject", "grant", "begins", "actor", "previous_state"} & body["data"].keys()
    place = await head(conn)
    await withdraw(conn, GrantTarget("plain", GrantScope.LINEAGE, "plain/thing-3"))
    await tell_all(west, conn)
    [left] = (await news(west, conn, place))["mine"]
    assert left.event.type == LEFT
    assert set(orjson.loads(left.event.text)["data"]) == {"collection", "id", "base_id", "version", "seq"}


async def test_a_grant_is_told_when_its_time_comes_and_when_it_runs_out(west: Node, conn: Connection) -> None:
    one = GrantTarget("plain", GrantScope.DATASET, "thing-1")
    await give(conn, to=one, begins=1, ends=2)
    place = await head(conn)
    assert await tell_all(west, conn) == 0
    await conn.execute("UPDATE fedstac.access_grant SET valid_from = clock_timestamp() - interval '1 hour'")
    await conn.execute("UPDATE fedstac.grant_turn SET due = clock_timestamp()")  # an hour later
    await tell_all(west, conn)
    assert (await delivered(west, conn, place))["mine"] == [("thing-1", ENTERED, True)]
    place = await head(conn)
    await conn.execute("UPDATE fedstac.access_grant SET valid_until = clock_timestamp()")
    await tell_all(west, conn)
    assert (await delivered(west, conn, place))["mine"] == [("thing-1", GONE, False)]
    await withdraw(conn, one)
    place = await head(conn)
    assert await tell_all(west, conn) == 0, "it is told once"


async def test_turns_that_nobody_follows_end_together(west: Node, conn: Connection) -> None:
    """Of what begins later there is a turn for everybody, and many may begin at one moment."""
    for number in range(20):
        await give(conn, f"reader-{number}", begins=1, ends=2)
    await give(conn, begins=1, ends=2)
    await conn.execute("UPDATE fedstac.access_grant SET valid_from = clock_timestamp() - interval '1 hour'")
    await conn.execute("UPDATE fedstac.grant_turn SET due = clock_timestamp() - grant_turn.id * interval '1 second'")
    assert await tell_all(west, conn) == 3, "those, the datasets of bert, and the end"
    assert await passages(conn) == ["thing-1", "thing-3", "thing-4"]
    assert await conn.fetchval("SELECT count(*) FROM fedstac.grant_turn") == 0


async def test_nothing_is_told_that_changes_nothing(west: Node, conn: Connection) -> None:
    """Another grant stands beside; nobody follows; the datasets are of no interest; whoever follows may publish."""
    await give(conn)
    await tell_all(west, conn)
    one = GrantTarget("plain", GrantScope.DATASET, "thing-1")
    place = await head(conn)
    await give(conn, to=one)
    await tell_all(west, conn)
    await withdraw(conn, one)
    await tell_all(west, conn)
    assert (await delivered(west, conn, place))["mine"] == [("thing-1", ENTERED, True)], "what it has, once more"
    count = len(await passages(conn))
    await give(conn, "carla")
    assert await tell_all(west, conn) == 0, "who has no subscription has no turn"
    await subscribe(west, conn, "elsewhere", CARLA, {"collections": ["CMIP6"]})
    await subscribe(west, conn, "nothing", CARLA, {"cql2": "kind = 'nothing'"})
    await give(conn, "carla", one)
    await tell_all(west, conn)
    assert len(await passages(conn)) == count, "only what a filter holds comes into the log"
    await subscribe(west, conn, "all", ANNA, {})
    place = await head(conn)
    await give(conn, "anna", one)
    await tell_all(west, conn)
    assert (await delivered(west, conn, place))["manager"] == []


async def test_a_grant_that_is_over_before_it_is_told_opens_nothing(west: Node, conn: Connection) -> None:
    place = await head(conn)
    await give(conn)
    await withdraw(conn)
    await tell_all(west, conn)
    assert {kind for _, kind, _ in (await delivered(west, conn, place))["mine"]} <= {GONE, CHANGED}
    place = await head(conn)
    await give(conn)
    await tell_all(west, conn)
    await withdraw(conn)
    assert await grant_turns.step(west, conn)
    await give(conn)
    await tell_all(west, conn)
    kinds = [(id, kind) for id, kind, _ in (await delivered(west, conn, place))["mine"]]
    assert (kinds[-1][0], {kind for id, kind in kinds if id == "thing-1"}) == ("thing-4", {ENTERED})
    assert GONE not in [kind for _, kind in kinds], "it is given again by now"


async def test_what_changed_since_is_told_by_its_own_event(west: Node, conn: Connection) -> None:
    place = await head(conn)
    await give(conn)
    await tell_all(west, conn)
    await change(
        conn, Amend(target(1), ANNA, MergePatch({"properties": {"title": "b"}}), None),
        Retract(target(3), ANNA, {"reason": "wrong"}),
    )  # fmt: skip
    got = (await delivered(west, conn, place))["mine"]
    assert got == [("thing-4", CHANGED, True), ("thing-1", ENTERED, True), ("thing-3", GONE, False)]
    place = await head(conn)
    await withdraw(conn)
    await tell_all(west, conn)
    assert "thing-3" not in [id for id, _, _ in (await delivered(west, conn, place))["mine"]], "it was closed before"
    await change(conn, Reinstate(target(3), ANNA))
    assert ("thing-3", ENTERED, True) not in (await delivered(west, conn, place))["mine"]


@pytest.fixture
def killed() -> Iterator[list[str]]:
    """Places where the next step dies, once each."""
    places: list[str] = []

    def die(place: str) -> None:
        if place in places:
            places.remove(place)
            raise ConnectionResetError("killed")

    failpoints.act(die)
    yield places
    failpoints.act(None)


async def test_a_large_project_is_told_in_chunks_each_of_which_is_stored(
    west: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch, killed: list[str]
) -> None:
    monkeypatch.setattr(grant_turns, "AT_ONCE", 4)
    monkeypatch.setattr(grant_turns, "AGAIN_SECONDS", 0.0)
    await writing.publish(conn, *(thing(number, "private") for number in range(10, 30)))
    place = await head(conn)
    await give(conn)
    for point in ("grants.told", "grants.committed", "grants.told"):
        assert await grant_turns.step(west, conn)
        killed.append(point)
        with pytest.raises(ConnectionResetError):
            await grant_turns.step(west, conn)
    assert await tell_all(west, conn) == 3, "two chunks, and the end"
    expected = sorted(["thing-1", "thing-3", "thing-4", *(f"thing-{number}" for number in range(10, 30))])
    assert await passages(conn) == expected, "each once, in the order of the ids"
    assert [id for id, _, _ in (await delivered(west, conn, place))["mine"]] == expected
    assert await conn.fetchval("SELECT count(*) FROM fedstac.grant_turn") == 0
    assert await invariants.check(conn) == []


async def test_nobody_gets_passages_but_by_subscriptions(west: Node, conn: Connection) -> None:
    await give(conn)
    await tell_all(west, conn)
    await feed.sequence(conn)
    for event_filter in (EventFilter(grants=True), EventFilter(collection="plain", grants=True), EventFilter()):
        types = {entry.type for entry in (await feed.look(conn, 0, 100, event_filter)).entries}
        assert PASSAGE not in types
        assert ("org.fedstac.grant.given.v1" in types) is event_filter.grants


async def test_the_datasets_that_a_grant_concerns_are_found_among_many_open_ones(
    west: Node, conn: Connection, cluster: embedded.Cluster, dsn: str, connect: writing.Connect,
    administrator: Connection, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(grant_turns, "AT_ONCE", 2)
    await writing.publish(conn, *(writing.plain(number) for number in range(100, 1100)))
    await administrator.execute(
        """INSERT INTO fedstac.access_grant (id, subject, collection, scope, target, valid_from, valid_until, given_at,
                                             given_by)
           SELECT gen_random_uuid(), 'subject-' || n, 'plain', 'project', '', now() - interval '1 day',
                  now() + interval '1 year', now(), 'anna' FROM generate_series(1, 5000) n"""
    )
    await administrator.execute("ANALYZE fedstac.access_grant, fedstac.record")
    plans.tell_plans(cluster.dsn(), name_in(dsn))
    watched: Connection = await connect()

    async def all_turns(conn: Connection) -> None:
        await give(conn)
        await tell_all(west, conn)
        await withdraw(conn, PROJECT)
        await tell_all(west, conn)

    for plan in await plans.plans_of(watched, all_turns):
        if "FROM fedstac.record" in plan.statement:
            assert plan.wasted.get("record", 0) <= 20, plan
        if "has_expired" in plan.statement or "fedstac.grant_turn t" in plan.statement:
            assert plan.wasted.get("access_grant", 0) <= 20, plan
