"""The datasets of a replica node: the newest event of each, what the policy says of it, and how it stands.

Who changes a dataset or its files locks its row here first; the order of locks is by n. Claims of workers go before.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from fedstac.db import nodes
from fedstac.db.connections import Connection, Row
from fedstac.domain.replication.policy import ReplicaDecision
from fedstac.domain.replication.reacting import EventState, Goal, GoalKind, Here, Reaction
from fedstac.domain.replication.states import DatasetState


@dataclass(frozen=True, slots=True)
class DatasetKey:
    """What a dataset is called in all feeds."""

    collection: str
    id: str


@dataclass(frozen=True, slots=True)
class NewestEvent:
    """The newest event of a dataset, and what it says of it.

    pos: its place in the feed, or that of the snapshot. document: JSON text; None of what is deleted. digest: of the
    files that it names (dataset_files.digest_of). size in bytes, of all files.
    """

    key: DatasetKey
    origin: str
    lineage: str
    epoch: int
    seq: int
    pos: int
    event_id: str
    state: EventState
    latest: bool
    retraction: Mapping[str, Any] | None
    document: str | None
    size: int
    files: int
    digest: bytes | None


@dataclass(frozen=True, slots=True)
class KnownDataset:
    """A dataset that is here already, locked for this transaction.

    files_digest: of the files that are planned or here; None: they are not those of any document. is_to_be_purged: a
    person ordered that its files go, and they are not gone yet.
    """

    n: int
    key: DatasetKey
    origin: str
    epoch: int
    seq: int
    here: Here
    goal: Goal
    files_digest: bytes | None
    is_to_be_purged: bool

    def includes(self, epoch: int, seq: int) -> bool:
        """Tell whether an event is in this state already, or older."""
        return (self.epoch, self.seq) >= (epoch, seq)


# the newest of what is here, of datasets that are locked; no file is read that is not one of theirs
HERE = """d.n, d.collection, d.id, d.origin, d.epoch, d.seq, d.state, d.reason, d.goal, d.tier, d.is_told,
          d.files_digest,
          d.announced_digest IS NOT NULL AND NOT EXISTS (
              SELECT FROM fedstac.replica_announcement a
              WHERE a.n = d.n AND a.kind = 'remove' AND a.state <> 'done') AS is_announced,
          coalesce(d."check", '') <> '' AS has_check, f.tiers, f.is_whole,
          EXISTS (SELECT FROM fedstac.replica_leftover l WHERE l.n = d.n) AS has_leftovers,
          EXISTS (SELECT FROM fedstac.replica_removal r
                  WHERE r.n = d.n AND r.state = 'queued' AND r.begun) AS is_disturbed,
          EXISTS (SELECT FROM fedstac.replica_removal r
                  WHERE r.n = d.n AND r.state <> 'done' AND r.kind = 'purge' AND r.event_id = '') AS is_to_be_purged"""
FILES = """LEFT JOIN LATERAL (SELECT array_agg(DISTINCT tier) AS tiers, bool_and(state = 'verified') AS is_whole
                              FROM fedstac.replica_file WHERE n = d.n) f ON true"""


async def lock_all(conn: Connection, names: Sequence[DatasetKey]) -> dict[DatasetKey, KnownDataset]:
    """Return those of some datasets that are here, and lock them."""
    rows = await conn.fetch(
        """SELECT d.n FROM unnest($1::text[], $2::text[]) w (collection, id)
           JOIN fedstac.replica_dataset d ON d.collection = w.collection AND d.id = w.id
           ORDER BY d.n FOR UPDATE OF d""",
        [name.collection for name in names], [name.id for name in names],
    )  # fmt: skip
    datasets = await read(conn, [row["n"] for row in rows])
    return {dataset.key: dataset for dataset in datasets}


async def lock(conn: Connection, n: int) -> KnownDataset | None:
    """Return one dataset and lock it; None where it is gone."""
    row = await conn.fetchrow("SELECT n FROM fedstac.replica_dataset WHERE n = $1 FOR UPDATE", n)
    if row is None:
        return None
    [dataset] = await read(conn, [n])
    return dataset


async def read(conn: Connection, numbers: Sequence[int]) -> list[KnownDataset]:
    """Read datasets in a statement after the one that locked them: it sees what was committed meanwhile."""
    rows = await conn.fetch(
        f"SELECT {HERE} FROM fedstac.replica_dataset d {FILES} WHERE d.n = ANY ($1::bigint[]) ORDER BY d.n",
        list(numbers),
    )
    return [_dataset(row) for row in rows]


def _dataset(row: Row) -> KnownDataset:
    here = Here(
        DatasetState(row["state"]), row["reason"], frozenset(row["tiers"] or ()), bool(row["is_whole"]),
        row["has_leftovers"], row["is_announced"], row["has_check"], row["is_disturbed"],
    )  # fmt: skip
    goal = Goal(GoalKind(row["goal"]), row["reason"], row["tier"], row["is_told"])
    return KnownDataset(
        row["n"], DatasetKey(row["collection"], row["id"]), row["origin"], row["epoch"], row["seq"], here, goal,
        row["files_digest"], row["is_to_be_purged"],
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Consequence:
    """What becomes of a dataset: what the policy says, how its files shall be, how it stands until then."""

    decision: ReplicaDecision
    goal: Goal
    reaction: Reaction


async def store(
    conn: Connection, changes: Sequence[tuple[NewestEvent, Consequence]], *, policy_digest: str
) -> dict[DatasetKey, int]:
    """Store newest events and what follows from them. Return the numbers of those datasets.

    What is here of another origin, or newer, stays as it is and is left out.
    """
    rows = await conn.fetch(
        """INSERT INTO fedstac.replica_dataset AS d (
               origin, collection, id, lineage, epoch, seq, pos, event_id, event_state, latest, retraction, document,
               size, files, action, rule, priority, tier, "check", on_superseded, on_retracted, goal, is_told, state,
               reason, policy_digest)
           SELECT *, $26::text FROM unnest(
               $1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::text[],
               $9::text[], $10::boolean[], $11::jsonb[], $12::jsonb[], $13::bigint[], $14::integer[], $15::text[],
               $16::text[], $17::integer[], $18::text[], $19::text[], $20::text[], $21::text[], $22::text[],
               $23::boolean[], $24::text[], $25::text[])
           ON CONFLICT (collection, id) DO UPDATE SET
               lineage = EXCLUDED.lineage, epoch = EXCLUDED.epoch, seq = EXCLUDED.seq, pos = EXCLUDED.pos,
               event_id = EXCLUDED.event_id, event_state = EXCLUDED.event_state, latest = EXCLUDED.latest,
               retraction = EXCLUDED.retraction, document = EXCLUDED.document, size = EXCLUDED.size,
               files = EXCLUDED.files, action = EXCLUDED.action, rule = EXCLUDED.rule, priority = EXCLUDED.priority,
               tier = EXCLUDED.tier, "check" = EXCLUDED."check", on_superseded = EXCLUDED.on_superseded,
               on_retracted = EXCLUDED.on_retracted, goal = EXCLUDED.goal, is_told = EXCLUDED.is_told,
               policy_digest = EXCLUDED.policy_digest, state = EXCLUDED.state, reason = EXCLUDED.reason,
               since = CASE WHEN d.state = EXCLUDED.state THEN d.since ELSE clock_timestamp() END,
               until = CASE WHEN d.state = EXCLUDED.state THEN d.until END,
               attempts = CASE WHEN d.state = EXCLUDED.state THEN d.attempts ELSE 0 END,
               next_try = CASE WHEN d.state = EXCLUDED.state THEN d.next_try END,
               announced_digest = CASE WHEN EXCLUDED.document IS NOT NULL THEN d.announced_digest END,
               lane = NULL,  -- its files may come from elsewhere now
               updated = clock_timestamp()
           WHERE d.origin = EXCLUDED.origin AND (d.epoch, d.seq) <= (EXCLUDED.epoch, EXCLUDED.seq)
           RETURNING d.n, d.collection, d.id""",
        *_columns(changes), policy_digest,
    )  # fmt: skip
    return {DatasetKey(row["collection"], row["id"]): row["n"] for row in rows}


def _columns(changes: Sequence[tuple[NewestEvent, Consequence]]) -> list[list[Any]]:
    rows = [
        (event.origin, event.key.collection, event.key.id, event.lineage, event.epoch, event.seq, event.pos,
         event.event_id, event.state, event.latest,
         orjson.dumps(dict(event.retraction)).decode() if event.retraction is not None else None, event.document,
         event.size, event.files, consequence.decision.action, consequence.decision.rule or "",
         consequence.decision.priority,
         consequence.goal.tier, shlex.join(consequence.decision.check) or None, consequence.decision.on_superseded,
         consequence.decision.on_retracted, consequence.goal.kind, consequence.goal.is_told, consequence.reaction.state,
         consequence.reaction.reason)
        for event, consequence in changes
    ]  # fmt: skip
    return [list(column) for column in zip(*rows, strict=True)]


async def settle(conn: Connection, n: int, reaction: Reaction, *, forgets_entry: bool = False) -> None:
    """Store how a locked dataset stands. `forgets_entry`: what the origin has of us is not its files any more."""
    await conn.execute(
        """UPDATE fedstac.replica_dataset
           SET state = $2, reason = $3, until = NULL, next_try = NULL, attempts = 0, lane = NULL,
               turn = CASE WHEN $2 <> 'removed' THEN turn END,
               since = CASE WHEN state = $2 THEN since ELSE clock_timestamp() END,
               announced_digest = CASE WHEN NOT $4 THEN announced_digest END, updated = clock_timestamp()
           WHERE n = $1""",
        n, reaction.state, reaction.reason, forgets_entry,
    )  # fmt: skip


async def document_of(conn: Connection, n: int) -> Mapping[str, Any] | None:
    """Return the document of a dataset as it was published; None of one that is deleted."""
    text = await conn.fetchval("SELECT document FROM fedstac.replica_dataset WHERE n = $1", n)
    return orjson.loads(text) if text is not None else None


async def unlisted(conn: Connection, origin: str, *, before_epoch: int) -> list[KnownDataset]:
    """Return and lock what came from an origin in earlier epochs only: the snapshot of a newer one does not list it.

    What it lists and was parked here is listed: its files stay as they are.
    """
    rows = await conn.fetch(
        """SELECT n FROM fedstac.replica_dataset d
           WHERE origin = $1 AND epoch < $2 AND event_state NOT IN ('deleted', 'purged')
             AND NOT EXISTS (SELECT FROM fedstac.parked_event p
                             WHERE p.consumer = $3 AND p.origin = $1 AND p.subject = d.collection || '/' || d.id)
           ORDER BY n FOR UPDATE""",
        origin, before_epoch, nodes.REPLICA,
    )  # fmt: skip
    return await read(conn, [row["n"] for row in rows])


async def redirect(conn: Connection, changes: Sequence[tuple[int, Goal, Reaction]]) -> None:
    """Store another goal for locked datasets than their newest event and the policy give."""
    await conn.execute(
        """UPDATE fedstac.replica_dataset d
           SET goal = c.goal, tier = c.tier, is_told = c.is_told, state = c.state, reason = c.reason, until = NULL,
               since = CASE WHEN d.state = c.state THEN d.since ELSE clock_timestamp() END, updated = clock_timestamp()
           FROM unnest($1::bigint[], $2::text[], $3::text[], $4::boolean[], $5::text[], $6::text[])
                c (n, goal, tier, is_told, state, reason) WHERE d.n = c.n""",
        [n for n, _, _ in changes], [goal.kind for _, goal, _ in changes], [goal.tier for _, goal, _ in changes],
        [goal.is_told for _, goal, _ in changes], [reaction.state for _, _, reaction in changes],
        [reaction.reason for _, _, reaction in changes],
    )  # fmt: skip
