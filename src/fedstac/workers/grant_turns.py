"""Tells subscriptions which datasets enter and leave when a grant of their owner begins or ends.

A grant of a project may open a hundred thousand datasets. So they are told some at a time, by the order of their ids: a
chunk is one transaction with how far the turn is. Whoever is killed leaves a chunk that never was, and another process
goes on. Turns take turns. Only what a subscription of the owner holds by its filter comes into the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import orjson
import structlog

from fedstac.bootstrap import Node
from fedstac.db import connections, grant_turns, outbox
from fedstac.db.connections import Connection
from fedstac.db.grant_turns import GrantTurn
from fedstac.db.outbox import Announcement
from fedstac.domain import documents, grant_passages
from fedstac.domain.grants import PASSAGE
from fedstac.domain.identifiers import uuid7
from fedstac.domain.model import Record
from fedstac.domain.subscriptions import SubscriptionFilter
from fedstac.domain.truth import facts_of
from fedstac.runtime import supervision
from fedstac.runtime.failpoints import failpoint
from fedstac.workers import subscribing

PART: Final = "grants"
AT_ONCE: Final = 250  # datasets of a chunk
ENDS_AT_ONCE: Final = 500  # grants that ran out, and turns that nobody follows
SHARE: Final = 0.7  # of the time, that chunks take
AGAIN_SECONDS: Final = 30.0  # before a turn that failed is tried again
log = structlog.get_logger()


async def run(node: Node, stop: asyncio.Event) -> None:
    """Work until `stop`."""

    async def look() -> float | None:
        async with node.pool.acquire() as conn:
            return SHARE if await step(node, conn) else None

    await supervision.keep_working(node.parts, PART, look, stop, commits=node.commits)


async def step(node: Node, conn: Connection) -> bool:
    """Note grants that ran out, and tell the next chunk of the turn that waits longest; return whether there is more.

    A turn whose chunk fails waits until others have had theirs.
    """
    has_more = await grant_turns.note_ends(conn, ENDS_AT_ONCE)
    turn: GrantTurn | None = None
    try:
        async with conn.transaction():
            turn = await grant_turns.take(conn)
            if turn is None:
                return has_more
            await _tell(node, conn, turn)
            failpoint("grants.told")
    except Exception:
        if turn is not None and connections.is_open(conn):
            await grant_turns.put_off(conn, turn, AGAIN_SECONDS)
        raise
    failpoint("grants.committed")
    node.committed.wake()
    return True


async def _tell(node: Node, conn: Connection, turn: GrantTurn) -> None:
    """Log the next chunk of a locked turn: the datasets that a subscription holds by its filter."""
    filters_of_owner = await subscribing.filters_of_owner(conn, turn.subject)
    if not filters_of_owner:  # of what begins later there is a turn for everybody: many may be due at one moment
        await grant_turns.end_unheard(conn, ENDS_AT_ONCE)
    filters = [each for each in filters_of_owner if each.takes_collection(turn.target.collection)]
    datasets = await grant_turns.datasets(conn, turn, AT_ONCE) if filters and not turn.is_void else []
    if not datasets:
        await grant_turns.end(conn, turn)
        log.info("subscriptions are told of a grant", grant=str(turn.grant), begins=turn.begins, datasets=turn.told)
        return
    held_datasets = await asyncio.to_thread(_held_by, filters, datasets)
    announcements = [
        _announcement(node, turn, record, turn.told + n) for n, record in enumerate(held_datasets, 1)
    ]  # fmt: skip
    await outbox.append(conn, announcements)
    await grant_turns.advance(conn, turn, datasets[-1].id, turn.told + len(announcements))


def _held_by(filters: Sequence[SubscriptionFilter], datasets: Sequence[Record]) -> list[Record]:
    """Return those of some datasets that one of the filters holds."""
    names = frozenset[str]().union(*(each.names for each in filters))
    held_datasets = []
    for record in datasets:
        document = {**orjson.loads(record.document or "{}"), "collection": record.collection}
        facts = facts_of(document, names, properties=documents.state_of(record))
        if any(each.test(facts) is True for each in filters):
            held_datasets.append(record)
    return held_datasets


def _announcement(node: Node, turn: GrantTurn, record: Record, number: int) -> Announcement:
    event_id = uuid7(turn.now)
    passage = grant_passages.write(
        record, subject=turn.subject, grant=turn.grant, begins=turn.begins, event_id=event_id,
        origin=node.settings.node, at=turn.now, number=number,
    )  # fmt: skip
    return Announcement(
        event_id, f"passages:{turn.id}", record.collection, None, number, PASSAGE, passage.digest, passage.text,
    )  # fmt: skip
