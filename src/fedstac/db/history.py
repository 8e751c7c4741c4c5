"""What became of datasets: the versions and the events of one, and the states of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from fedstac.db.connections import Connection
from fedstac.domain import events as dataset_events

MOST_VERSIONS = 1000
SHOWN = ("published", "retracted")
BY_ID = (*SHOWN, "quarantined")  # states in which whoever names a dataset sees it
SHOWN_TO_MANAGERS = (*BY_ID, "marked")
# events that only managers see
OF_HIDING = (dataset_events.MARKED, dataset_events.UNMARKED, dataset_events.QUARANTINED, dataset_events.RELEASED)


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version of a dataset. `document` is there for the one that is asked for, to know whose it is, where wanted.

    institution: of a private version, whose it is.
    """

    lineage: str
    id: str
    version: int | None
    state: str
    latest: bool
    created: datetime
    updated: datetime
    origin: str
    cv_version: str | None
    retraction: str | None
    document: str | None
    access: str
    institution: str | None


@dataclass(frozen=True, slots=True)
class EventRow:
    """An event of a dataset, as the node that made it has it in its log. `retraction` is JSON."""

    event_id: UUID
    dataset: str
    type: str
    time: str
    state: str
    previous_state: str | None
    latest: bool
    actor: str | None
    retraction: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class DatasetEvents:
    events: tuple[EventRow, ...]
    has_more: bool


async def versions(
    conn: Connection, collection: str, id: str, states: Sequence[str] = SHOWN, *, naming: str | None = None,
    with_private: bool, with_document: bool,
) -> list[VersionRow]:  # fmt: skip
    """Return the versions of a dataset that have one of the states, the newest first; none if it is not among them.

    naming: the property that says whose a dataset is. with_private: also private versions. with_document: with the
    document of the one that is asked for.
    """
    rows = await conn.fetch(
        """SELECT r.lineage, r.id, r.version, r.state, r.latest, r.created, r.updated, r.origin, r.cv_version,
                  r.retraction, CASE WHEN $7 AND r.id = $2 THEN r.document END AS document, r.access,
                  CASE WHEN r.access = 'private' THEN r.document::jsonb -> 'properties' ->> $5::text END AS institution
           FROM fedstac.record a JOIN fedstac.record r ON r.lineage = a.lineage AND r.state = ANY ($3::text[])
                AND ($6 OR r.access <> 'private')
           WHERE a.collection = $1 AND a.id = $2 AND a.state = ANY ($3::text[]) AND ($6 OR a.access <> 'private')
           ORDER BY r.version DESC NULLS LAST, r.id DESC LIMIT $4""",
        collection, id, states, MOST_VERSIONS, naming, with_private, with_document,
    )  # fmt: skip
    return [VersionRow(**dict(row)) for row in rows]


async def events(
    conn: Connection, lineage: str, ids: Sequence[str], *, before: UUID | None, limit: int, with_hiding: bool
) -> DatasetEvents | None:
    """Return events of these datasets of a lineage, the newest first. None where `before` is no event of it.

    before: only events older than this one. with_hiding: also those of marks and of quarantine.
    """
    place = None
    if before is not None:
        place = await conn.fetchval(
            """SELECT id FROM fedstac.outbox WHERE key = $1 AND event_id = $2 AND dataset = ANY ($3::text[])
               AND ($4 OR type <> ALL ($5::text[]))""",
            lineage, before, ids, with_hiding, OF_HIDING,
        )  # fmt: skip
        if place is None:
            return None
    rows = await conn.fetch(
        """SELECT event_id, dataset, type, e.event ->> 'time' AS time, e.event #>> '{data,state}' AS state,
                  e.event #>> '{data,previous_state}' AS previous_state, e.event #>> '{data,latest}' = 'true' AS latest,
                  e.event #>> '{data,actor}' AS actor, e.event #>> '{data,retraction}' AS retraction,
                  e.event #>> '{data,reason}' AS reason
           FROM (SELECT id, event_id, dataset, type, event::json AS event FROM fedstac.outbox
                 WHERE key = $1 AND dataset = ANY ($2::text[]) AND ($3::bigint IS NULL OR id < $3)
                   AND ($4 OR type <> ALL ($5::text[]))
                 ORDER BY id DESC LIMIT $6) e ORDER BY e.id DESC""",
        lineage, ids, place, with_hiding, OF_HIDING, limit + 1,
    )  # fmt: skip
    return DatasetEvents(tuple(EventRow(**dict(row)) for row in rows[:limit]), len(rows) > limit)


@dataclass(frozen=True, slots=True)
class StatusRow:
    """How a dataset stands; without a collection: there is none of this id that can be seen."""

    id: str
    collection: str | None
    state: str | None
    latest: bool | None
    updated: datetime | None
    retraction: str | None
    latest_id: str | None


async def statuses(conn: Connection, ids: Sequence[str], collections: Sequence[str] | None) -> list[StatusRow]:
    """Return how datasets stand, in the order of their ids; one id may be that of datasets in several collections.

    collections: where to look; None: in all.
    """
    rows = await conn.fetch(
        """WITH place AS MATERIALIZED (SELECT array_agg(DISTINCT id) AS names FROM fedstac.collection
                                       WHERE document IS NOT NULL AND ($2::text[] IS NULL OR id = ANY ($2)))
           SELECT a.id, r.collection, r.state, r.latest, r.updated, r.retraction,
                  (SELECT o.id FROM fedstac.record o
                   WHERE o.lineage = r.lineage AND o.latest AND o.state IN ('published', 'retracted')) AS latest_id
           FROM unnest($1::text[]) WITH ORDINALITY a (id, n)
           LEFT JOIN LATERAL (
               SELECT * FROM fedstac.record r WHERE r.collection = ANY ((SELECT names FROM place)::text[])
               AND r.id = a.id AND r.state IN ('published', 'retracted', 'quarantined')
               AND r.access <> 'private') r ON true
           ORDER BY a.n, r.collection""",
        ids, collections,
    )  # fmt: skip
    return [StatusRow(**dict(row)) for row in rows]
