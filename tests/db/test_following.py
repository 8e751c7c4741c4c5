"""An index node and what a source says of vocabularies: judged again, fetched by digest, parked where it is wrong."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import asyncpg
import orjson
import pytest

from fedstac import applying, bootstrap
from fedstac.bootstrap import Node
from fedstac.db import vocabularies
from fedstac.db.connections import Connection
from fedstac.demo import sample
from fedstac.domain import events
from fedstac.domain.events import Cursor
from fedstac.domain.vocabulary import VocabularyBroken
from fedstac.messaging.sources import EventPage, NotServed, SourceAway, SourceRefused
from fedstac.runtime.causes import DRIVER_ERRORS
from fedstac.settings import Settings
from fedstac.vocabularies import store
from fedstac.vocabularies.registry import snapshot_of
from fedstac.workers import following, pages
from fedstac.workers.following import Follower, OriginRolledBack
from fedstac.workers.index_node import IndexHandler
from fedstac.workers.page_applying import PageApplier, _WrittenPage
from tests.db.sources import RAW, Json, Source, entry, follow, follower_of
from tests.db.spoiling import LONG, SPOILS
from tests.support.waiting import PATIENCE

CMIP6 = "6.2.60.0"
NEXT = "6.2.61.0"  # a version that no node has
OTHER = RAW.replace(b'"title":"CMIP6"', b'"title":"Other"', 1)
DIGEST = snapshot_of(RAW).digest


async def here(conn: Connection) -> tuple[list[str], list[str], list[str]]:
    """Return the datasets, why others are parked, and the versions that are kept."""
    return (
        [row[0] for row in await conn.fetch("SELECT id FROM fedstac.record ORDER BY 1")],
        [row[0] for row in await conn.fetch("SELECT detail FROM fedstac.parked_event ORDER BY 1")],
        [row[0] for row in await conn.fetch("SELECT version FROM fedstac.vocabulary ORDER BY 1")],
    )


async def test_a_vocabulary_of_another_digest_is_not_kept_so_that_the_right_one_can_come(
    node: Node, conn: Connection
) -> None:
    [item] = sample.items(1)
    entries = [entry(node, item, NEXT, digest=DIGEST)]
    await follow(node, Source(entries, OTHER))
    shown, parked, kept = await here(conn)
    assert (shown, kept) == ([], [])
    assert DIGEST in parked[0]
    await follow(node, Source(entries, RAW))
    assert await here(conn) == ([item["id"]], [], [NEXT])


async def test_a_source_that_refuses_the_vocabulary_is_asked_again_and_nothing_is_parked(
    node: Node, conn: Connection
) -> None:
    [item] = sample.items(1)
    entries = [entry(node, item, NEXT, digest=DIGEST)]
    with pytest.raises(SourceRefused):
        await follow(node, Source(entries, SourceRefused("403")))
    assert await here(conn) == ([], [], [])
    await follow(node, Source(entries, RAW))
    assert await here(conn) == ([item["id"]], [], [NEXT])


@pytest.mark.parametrize(
    "served",
    [b"", b"{}", RAW.replace(b"6.2.61.0", b"6.2.62.0", 1), b"<html>", NotServed("404")],
    ids=["empty", "no-snapshot", "another-version", "html", "404"],
)
async def test_what_is_no_such_snapshot_parks_the_dataset_alone(
    node: Node, conn: Connection, served: bytes | SourceRefused
) -> None:
    first, second = sample.items(2)
    await follow(node, Source([entry(node, first, NEXT), entry(node, second, "6.2.60.0")], served))
    shown, parked, kept = await here(conn)
    assert (shown, len(parked), kept) == ([second["id"]], 1, [])


async def test_a_vocabulary_that_is_here_with_other_content_parks_the_dataset(node: Node, conn: Connection) -> None:
    [item] = sample.items(1)
    await follow(node, Source([entry(node, item, "6.2.60.0", digest="00" * 32)], RAW))
    shown, [why], _ = await here(conn)
    assert shown == []
    assert "another vocabulary" in why


def changed(change: Callable[[Json], object]) -> Json:
    [item] = sample.items(1)
    made = copy.deepcopy(item)
    change(made)
    return made


def script(item: Json) -> None:
    next(iter(item["assets"].values()))["href"] = "javascript:alert(1)"


class PagedSource(Source):
    """A source whose feed has pages of these sizes."""

    def __init__(self, entries: Sequence[str], sizes: Sequence[int]) -> None:
        super().__init__(entries)
        self.sizes = list(sizes)
        self.received: list[int] = []

    async def receive(self, after: Cursor, *, limit: int, wait: float) -> EventPage:
        self.received.append(after.pos)
        size = self.sizes.pop(0) if self.sizes else 0
        return EventPage(self.entries[after.pos : after.pos + size], Cursor(1, after.pos + size))

    async def acknowledge(
        self, through: Cursor, exceptions: Sequence[Mapping[str, str]], *, consumer: str | None = None
    ) -> None:
        """Do nothing: this test does not look at it."""


async def test_the_next_page_is_judged_before_this_one_is_committed_and_none_is_lost_when_that_fails(
    node: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "LONG_PAGE", 2)
    items = list(sample.items(5))
    source = PagedSource([entry(node, item, CMIP6) for item in items], [2, 2, 2])
    follower = follower_of(node, source)
    follower.snapshot_first = False
    judged = asyncio.Event()  # the third page
    prepare, write = IndexHandler.prepare, PageApplier._write
    is_broken = True

    async def prepare_and_tell(handler: IndexHandler, page: pages.Page) -> pages.PageReading:
        reading = await prepare(handler, page)
        if page.cursor.pos == 6:
            judged.set()
        return reading

    async def write_when_judged(
        applier: PageApplier, conn: Connection, page: pages.Page, rejections: Sequence[pages.Rejection]
    ) -> _WrittenPage:
        if page.cursor.pos == 4:
            await judged.wait()  # it never comes where no page is read ahead
            if is_broken:
                raise SourceAway("in the middle of it")
        return await write(applier, conn, page, rejections)

    monkeypatch.setattr(IndexHandler, "prepare", prepare_and_tell)
    monkeypatch.setattr(PageApplier, "_write", write_when_judged)
    await follower.begin()
    await follower.step(0)
    with pytest.raises(SourceAway):
        await follower.step(0)
    assert [len(await here_ids(conn)), follower.applied_cursor.pos] == [1, 2]
    await follower.begin()
    is_broken, source.sizes = False, [2, 2]
    judged.set()
    assert [await follower.step(0), await follower.step(0), await follower.step(0)] == [2, 2, 0]
    assert await here_ids(conn) == sorted(item["id"] for item in items)
    assert source.received == [0, 2, 4, 2, 4, 6, 6]
    await follower.drop_beside()


async def test_an_event_that_crashes_its_session_again_and_again_is_parked_and_the_rest_is_applied(
    node: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = list(sample.items(5))
    deadly = items[2]["id"]
    source = PagedSource([entry(node, item, CMIP6) for item in items], [6] * 30)
    follower = follower_of(node, source)
    follower.snapshot_first = False
    write = PageApplier._write

    async def write_or_crash(
        applier: PageApplier, conn: Any, page: pages.Page, rejections: Sequence[pages.Rejection]
    ) -> _WrittenPage:
        if any(event["data"].get("id") == deadly for event in page.events):
            conn._con._transport.abort()  # as if PostgreSQL had crashed
        return await write(applier, conn, page, rejections)

    monkeypatch.setattr(PageApplier, "_write", write_or_crash)
    for _ in range(30):
        try:
            await follower.begin()
            await follower.step(0)
            break
        except (*DRIVER_ERRORS, OSError):
            continue
    shown, parked, _ = await here(conn)
    assert shown == sorted(item["id"] for item in items if item["id"] != deadly)
    assert len(parked) == 1
    await follower.drop_beside()


async def here_ids(conn: Connection) -> list[str]:
    return (await here(conn))[0]


async def test_what_somebody_else_installed_while_it_was_fetched_is_what_judges(node: Node, conn: Connection) -> None:
    class Slow(Source):
        async def vocabulary(self, project: str, version: str) -> bytes:
            await store.install(conn, OTHER, "another follower")
            return await super().vocabulary(project, version)

    first, second = sample.items(2)
    await follow(node, Slow([entry(node, first, NEXT, digest=DIGEST), entry(node, second, NEXT)], RAW))
    kept = await vocabularies.digest(conn, "CMIP6", NEXT)
    found = node.checker.vocabularies.find("CMIP6", NEXT)
    assert found is not None
    assert found.digest == kept == snapshot_of(OTHER).digest
    shown, [why], _ = await here(conn)
    assert shown == [second["id"]]
    assert "another vocabulary" in why


async def test_a_document_without_a_vocabulary_is_judged_by_what_every_item_has_to_be(
    node: Node, conn: Connection
) -> None:
    await follow(node, Source([entry(node, changed(script), None)], RAW))
    shown, [why], _ = await here(conn)
    assert shown == []
    assert "what every item has to be" in why


async def test_an_id_that_only_new_datasets_may_not_have_is_taken(node: Node, conn: Connection) -> None:
    def with_a_comma(item: Json) -> None:
        item["id"] = item["id"].replace("CMIP6.", "CMIP6,")

    old = changed(with_a_comma)
    await follow(node, Source([entry(node, old, None)], RAW))
    assert await here(conn) == ([old["id"]], [], [])


async def test_what_is_excused_is_taken_but_not_what_every_node_refuses(node: Node, conn: Connection) -> None:
    moved = changed(lambda item: item["properties"].update({"cmip6:nominal_resolution": "3 km"}))
    excused = json.dumps([["term", "/properties/cmip6:nominal_resolution"]])
    await follow(node, Source([entry(node, moved, "6.2.60.0", excused=excused)], RAW))
    assert (await here(conn))[0] == [moved["id"]]


async def test_a_rule_that_everything_relies_on_is_excused_for_nobody(node: Node, conn: Connection) -> None:
    key = next(iter(changed(script)["assets"]))
    excused = json.dumps([["href", f"/assets/{key}/href"]])
    await follow(node, Source([entry(node, changed(script), "6.2.60.0", excused=excused)], RAW))
    shown, parked, _ = await here(conn)
    assert (shown, len(parked)) == ([], 1)


# --- what a node starts with ---


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"cv_folder": "/nowhere/at/all"}, "no folder of vocabulary snapshots"),
        ({"cv_pins": {"CMIP6": "9.9"}}, r"FEDSTAC_CV_PINS: CMIP6 has no vocabulary '9\.9'"),
        ({"cv_pins": {"CMIP9": "1"}}, "FEDSTAC_CV_PINS: CMIP9 has no vocabulary"),
    ],
)
async def test_a_node_does_not_start_without_the_vocabularies_it_is_to_judge_with(
    dsn: str, values: Json, reason: str
) -> None:
    with pytest.raises(VocabularyBroken, match=reason):
        async with bootstrap.node(Settings(**{"dsn": dsn, "node": "west", "_env_file": None, **values})):
            pass


async def test_nor_with_a_damaged_one(dsn: str, tmp_path: Any) -> None:
    (tmp_path / "CMIP6").mkdir()
    (tmp_path / "CMIP6" / "6.2.60.0.json").write_bytes(RAW[:1000])
    with pytest.raises(VocabularyBroken, match="CMIP6 that judges cannot be used"):
        async with bootstrap.node(Settings(dsn=dsn, node="west", cv_folder=str(tmp_path), _env_file=None)):
            pass


async def test_a_pin_may_be_of_a_version_that_was_installed(dsn: str, conn: Connection) -> None:
    await store.install(conn, RAW, "test")
    async with bootstrap.node(Settings(dsn=dsn, node="west", cv_pins={"CMIP6": NEXT}, _env_file=None)) as running:
        current = running.checker.vocabularies.current("CMIP6")
        assert current is not None
        assert current.version == NEXT


# --- what is parked stays so until something newer of the same dataset is applied (C2) ---


async def test_what_is_parked_behind_its_own_earlier_event_stays_parked(node: Node, conn: Connection) -> None:
    [item] = sample.items(1)
    sound, broken = entry(node, item, CMIP6), entry(node, item, CMIP6, digest="00" * 32, seq=2)
    await follow(node, Source([sound, broken]))
    shown, parked, _ = await here(conn)
    assert (shown, len(parked)) == ([item["id"]], 1)
    await follow(node, Source([sound]))  # an older one once more, which is known already
    assert len((await here(conn))[1]) == 1


async def test_a_later_event_replaces_the_parked_one_also_in_the_same_page(node: Node, conn: Connection) -> None:
    [item] = sample.items(1)
    broken, sound = entry(node, item, CMIP6, digest="00" * 32), entry(node, item, CMIP6, seq=2)
    await follow(node, Source([broken]))
    assert len((await here(conn))[1]) == 1
    await follow(node, Source([broken, sound]))
    assert (await here(conn))[:2] == ([item["id"]], [])


async def test_of_several_that_cannot_be_applied_the_last_is_parked(node: Node, conn: Connection) -> None:
    [item] = sample.items(1)
    entries = [entry(node, item, CMIP6, digest="00" * 32, seq=seq) for seq in (1, 2)]
    await follow(node, Source(entries))
    assert (
        await conn.fetchval("SELECT event->'data'->>'seq' FROM (SELECT event::jsonb FROM fedstac.parked_event) p")
        == "2"
    )


async def test_names_that_no_index_takes_stop_nothing(node: Node, conn: Connection) -> None:
    first, second = sample.items(2)
    broken = orjson.loads(entry(node, first, CMIP6, digest="00" * 32))
    page = [orjson.dumps({**broken, "id": LONG, "subject": LONG}).decode(), entry(node, second, CMIP6)]
    await follow(node, Source(page))
    shown, parked, _ = await here(conn)
    assert (shown, len(parked)) == ([second["id"]], 1)


async def test_a_snapshot_that_calls_itself_another_nodes_brings_nothing_of_it(node: Node, conn: Connection) -> None:
    [item] = sample.items(1)
    source = Source([entry(node, item, CMIP6, origin="south")], origin="south")
    follower = follower_of(node, source)
    follower.origin_name = "north"
    await follower.take_snapshot(None)
    assert (await here(conn))[0] == []
    assert await conn.fetchval("SELECT count(*) FROM fedstac.cursor WHERE origin = 'south'") == 0


async def test_what_is_told_of_a_parked_event_is_what_the_source_can_store(node: Node, conn: Connection) -> None:
    [item] = sample.items(1)
    broken = orjson.loads(entry(node, item, CMIP6, digest="00" * 32))
    broken |= {"id": "an\0id", "source": "north\0"}
    follower = await follow(node, Source([orjson.dumps(broken).decode()]))
    [exception] = follower.acknowledgements.exceptions
    assert exception["event_id"] == "an\ufffdid"
    assert "\0" not in exception["detail"]


async def test_what_was_parked_of_a_log_that_is_lost_is_forgotten_with_it(node: Node, conn: Connection) -> None:
    first, second = sample.items(2)
    await follow(node, Source([entry(node, first, CMIP6, digest="00" * 32)]))
    restored = [entry(node, second, CMIP6, digest="00" * 32, epoch=2)]
    await follow(node, Source(restored, epoch=2))
    assert [row[0] for row in await conn.fetch("SELECT subject FROM fedstac.parked_event")] == [f"CMIP6/{second['id']}"]


async def test_what_is_parked_is_told_in_portions_that_the_source_takes(node: Node, conn: Connection) -> None:
    positions: list[int] = []

    class RecordingSource(Source):
        async def acknowledge(
            self, through: Cursor, exceptions: Sequence[Mapping[str, str]], *, consumer: str | None = None
        ) -> None:
            positions.append(len(exceptions))

    items = sample.items(2200, versions=1)
    entries = [entry(node, item, CMIP6, digest="00" * 32) for item in items]
    follower = await follow(node, RecordingSource(entries))
    assert await follower.step(0) == 0
    assert positions == [1000, 1000, 200]


async def test_a_refused_acknowledgement_is_shown_and_tried_again_and_following_goes_on(
    node: Node, conn: Connection
) -> None:
    class RefusingSource(Source):
        is_refusing = True
        acknowledged: Cursor | None = None

        async def receive(self, after: Cursor, *, limit: int, wait: float) -> EventPage:
            return EventPage(self.entries, Cursor(1, after.pos + 1))

        async def acknowledge(
            self, through: Cursor, exceptions: Sequence[Mapping[str, str]], *, consumer: str | None = None
        ) -> None:
            if self.is_refusing:
                raise NotServed("/events/status answered 422")
            self.acknowledged = through

    first, second = sample.items(2)
    source = RefusingSource([entry(node, first, CMIP6)])
    follower = follower_of(node, source)
    await follower.step(0)
    source.entries = [orjson.loads(entry(node, second, CMIP6))]
    await follower.step(0)
    assert (await here(conn))[0] == sorted([first["id"], second["id"]])
    assert node.parts.troubles() == {"follower acknowledgements": "the source refuses an acknowledgement; trying again"}
    source.is_refusing = False
    follower.acknowledgements._next_at = 0.0
    await follower.step(0)
    assert source.acknowledged == follower.applied_cursor
    assert node.parts.troubles() == {}


class MuteSource(Source):
    """A source that takes acknowledgements, and answers when it is told to."""

    def __init__(self, *entries: str) -> None:
        super().__init__(entries)
        self.may_answer = asyncio.Event()
        self.acknowledgements: list[tuple[Cursor, list[str]]] = []  # with the events that are not applied
        self.calls = 0

    async def receive(self, after: Cursor, *, limit: int, wait: float) -> EventPage:
        return EventPage(self.entries, Cursor(1, after.pos + 1))

    async def acknowledge(
        self, through: Cursor, exceptions: Sequence[Mapping[str, str]], *, consumer: str | None = None
    ) -> None:
        self.calls += 1
        await self.may_answer.wait()
        self.acknowledgements.append((through, [each["event_id"] for each in exceptions]))


def is_telling(follower: Follower) -> bool:
    return follower._telling is not None


async def steps_without_end(follower: Follower) -> None:
    while True:
        await follower.step(0)


async def test_following_goes_on_while_an_acknowledgement_has_no_answer(node: Node, conn: Connection) -> None:
    """A broker that is away takes seconds to say so. What is parked meanwhile is told with the next one."""
    first, second, third = sample.items(3)
    source = MuteSource(entry(node, first, CMIP6))
    follower = follower_of(node, source)
    async with asyncio.timeout(PATIENCE):
        await follower.step(0)
        broken = orjson.loads(entry(node, third, CMIP6, digest="00" * 32)) | {"id": "broken"}
        source.entries = [orjson.loads(entry(node, second, CMIP6)), broken]
        await follower.step(0)
        assert (await here(conn))[0] == sorted([first["id"], second["id"]])
        assert source.calls == 1  # a second one would only wait behind it
        source.may_answer.set()
        source.entries = []
        while len(source.acknowledgements) < 2:
            await follower.step(0)
    assert source.acknowledgements[0][1] == []
    assert [each for _, exceptions in source.acknowledgements for each in exceptions] == ["broken"]
    assert source.acknowledgements[-1][0] == follower.acknowledgements.acknowledged
    assert follower.acknowledgements.exceptions == []


async def test_what_is_being_told_ends_with_following_and_its_fault_is_the_followers(
    node: Node, conn: Connection
) -> None:
    [item] = sample.items(1)
    source = MuteSource(entry(node, item, CMIP6))
    follower = follower_of(node, source)
    async with asyncio.timeout(PATIENCE):
        await follower.step(0)
        assert is_telling(follower)
        await follower.begin()  # as after a fault
        assert not is_telling(follower)

        async def fail(*_arguments: object, **_options: object) -> None:
            await source.may_answer.wait()
            raise ZeroDivisionError

        follower.acknowledgements._acknowledger = SimpleNamespace(acknowledge=fail)
        await follower.step(0)
        source.may_answer.set()
        with pytest.raises(ZeroDivisionError):
            await steps_without_end(follower)
        assert not is_telling(follower)


async def test_what_is_left_to_tell_is_told_at_the_end(node: Node, conn: Connection) -> None:
    [item] = sample.items(1)
    source = MuteSource(entry(node, item, CMIP6))
    follower = follower_of(node, source)
    async with asyncio.timeout(PATIENCE):
        await follower.step(0)
        finishing = asyncio.create_task(follower.finish())
        source.may_answer.set()
        await finishing
    assert source.acknowledgements[-1][0] == follower.applied_cursor


# --- whatever an origin says, only what it says it of waits ---


@pytest.mark.parametrize("spoil", SPOILS)
async def test_an_event_that_no_node_would_write_stops_no_other(
    node: Node, conn: Connection, spoil: Callable[[Json], None]
) -> None:
    first, second = sample.items(2)
    spoilt: Json = orjson.loads(entry(node, first, CMIP6))
    spoil(spoilt)
    source = Source([entry(node, second, CMIP6)])
    source.entries.insert(1, spoilt)
    await follow(node, source)
    shown, parked, _ = await here(conn)
    assert second["id"] in shown
    found = await conn.fetch("SELECT id FROM pgstac.items ORDER BY id")
    assert [row["id"] for row in found] == shown
    assert len(shown) + len(parked) == 2


@pytest.mark.parametrize(("epoch", "pos", "lost"), [(1, 2, True), (2, 1, True), (1, 1, False), (0, 9, False)])
async def test_a_source_that_lost_what_is_applied_here_and_has_no_new_epoch_is_not_followed(
    node: Node, epoch: int, pos: int, lost: bool
) -> None:
    follower = follower_of(node, Source([]), applied=Cursor(epoch, pos))
    if not lost:
        await follower._refuse_rolled_back()
        return
    with pytest.raises(OriginRolledBack, match="fedstac admin new-epoch"):
        await follower._refuse_rolled_back()


# --- blame: an event is parked for what it does alone ---


def failing_apply(monkeypatch: pytest.MonkeyPatch, fails: Callable[[list[str]], Exception | None]) -> None:
    """Make the application of events raise what `fails` makes of their datasets."""
    apply = applying.apply

    async def failing(conn: Connection, page: Sequence[events.Event]) -> applying.PageResult:
        error = fails([event.record.id for event in page if isinstance(event, events.DatasetEvent)])
        if error is not None:
            raise error
        return await apply(conn, page)

    monkeypatch.setattr(applying, "apply", failing)


@pytest.mark.parametrize("error", [KeyError("x"), asyncpg.InternalServerError("x"), asyncpg.UndefinedTableError("x")])
async def test_an_event_that_this_node_fails_on_is_parked_alone(
    node: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    items = list(sample.items(9, versions=1))
    failing_apply(monkeypatch, lambda ids: error if items[4]["id"] in ids else None)
    await follow(node, Source([entry(node, item, CMIP6) for item in items]))
    shown, parked, _ = await here(conn)
    assert shown == sorted(item["id"] for item in items if item is not items[4])
    assert parked == [f"this node fails on it: {error!r}"]


async def test_a_fault_that_every_event_meets_parks_none(
    node: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    [item] = sample.items(1)
    failing_apply(monkeypatch, lambda _: KeyError("ours"))
    with pytest.raises(KeyError, match="ours"):
        await follow(node, Source([entry(node, item, CMIP6)]))
    assert await here(conn) == ([], [], [])


@pytest.mark.parametrize("error", [asyncpg.DiskFullError("x"), asyncpg.InsufficientPrivilegeError("x"), OSError("x")])
async def test_a_fault_of_the_operator_or_the_network_parks_none(
    node: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    items = list(sample.items(3, versions=1))
    failing_apply(monkeypatch, lambda ids: error if items[1]["id"] in ids else None)
    with pytest.raises(type(error)):
        await follow(node, Source([entry(node, item, CMIP6) for item in items]))
    assert await here(conn) == ([], [], [])


async def test_events_that_fail_only_together_are_all_applied(
    node: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = list(sample.items(6, versions=1))
    failing_apply(monkeypatch, lambda ids: asyncpg.ProgramLimitExceededError("x") if len(ids) > 2 else None)
    await follow(node, Source([entry(node, item, CMIP6) for item in items]))
    assert await here(conn) == (sorted(item["id"] for item in items), [], [])
