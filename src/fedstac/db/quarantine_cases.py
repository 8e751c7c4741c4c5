"""Cases of quarantine: opened and closed with the change of a dataset, and listed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from fedstac.db.connections import Connection


@dataclass(frozen=True, slots=True)
class QuarantineCase:
    """A case of quarantine that begins. `quarantine` has reason, case, contact and links."""

    id: UUID
    collection: str
    dataset: str
    event_id: UUID
    actor: str
    quarantine: Mapping[str, Any]


async def open_cases(conn: Connection, cases: Sequence[QuarantineCase], *, now: datetime) -> None:
    """Store cases of quarantine; what one says replaces what was said before of the same open case.

    A batch may have several of one dataset: the first opens the case, and the last says what it is about.
    """
    by_dataset: dict[tuple[str, str], QuarantineCase] = {}
    for each in cases:
        first = by_dataset.setdefault((each.collection, each.dataset), each)
        by_dataset[each.collection, each.dataset] = replace(first, quarantine=each.quarantine)
    cases = list(by_dataset.values())
    await conn.execute(
        """INSERT INTO fedstac.quarantine_case AS q (id, collection, dataset, event_id, opened_by, reason, reference,
                                                     contact, links, opened_at)
           SELECT c.id, c.collection, c.dataset, c.event_id, c.actor, c.body ->> 'reason', c.body ->> 'case',
                  c.body ->> 'contact', ARRAY(SELECT jsonb_array_elements_text(c.body -> 'links')), $7
           FROM (SELECT id, collection, dataset, event_id, actor, body::jsonb AS body
                 FROM unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::text[], $6::text[])
                      u (id, collection, dataset, event_id, actor, body)) c
           ON CONFLICT (collection, dataset) WHERE closed_at IS NULL DO UPDATE SET
               reason = EXCLUDED.reason, reference = EXCLUDED.reference, contact = EXCLUDED.contact,
               links = EXCLUDED.links""",
        [each.id for each in cases], [each.collection for each in cases], [each.dataset for each in cases],
        [each.event_id for each in cases], [each.actor for each in cases],
        [orjson.dumps({"links": [], **each.quarantine}).decode() for each in cases], now,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class CaseEnd:
    """How the quarantine of a dataset ends."""

    collection: str
    dataset: str
    actor: str
    decision: str | None


async def close_cases(conn: Connection, endings: Sequence[CaseEnd], *, now: datetime) -> None:
    """Close the open cases of datasets."""
    await conn.execute(
        """UPDATE fedstac.quarantine_case q SET closed_at = $5, closed_by = e.actor, decision = e.decision
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) e (collection, dataset, actor, decision)
           WHERE q.collection = e.collection AND q.dataset = e.dataset AND q.closed_at IS NULL""",
        [each.collection for each in endings], [each.dataset for each in endings],
        [each.actor for each in endings], [each.decision for each in endings], now,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredCase:
    """A case of quarantine: who, when, why, the correspondence, the decision."""

    id: UUID
    collection: str
    dataset: str
    reason: str
    reference: str | None
    contact: str | None
    links: tuple[str, ...]
    opened_at: datetime
    opened_by: str
    decision: str | None
    closed_at: datetime | None
    closed_by: str | None


async def cases(
    conn: Connection, *, projects: Sequence[str] | None, is_open: bool | None, text: str | None, after: UUID | None,
    limit: int,
) -> list[StoredCase]:  # fmt: skip
    """Return cases of quarantine, the newest first; of these projects, None: of all."""
    rows = await conn.fetch(
        """SELECT id, collection, dataset, reason, reference, contact, links, opened_at, opened_by, decision, closed_at,
                  closed_by
           FROM fedstac.quarantine_case
           WHERE ($1::text[] IS NULL OR collection = ANY ($1)) AND ($2::boolean IS NULL OR (closed_at IS NULL) = $2)
             AND ($3::text IS NULL OR strpos(lower(dataset), lower($3)) > 0)
             AND ($4::uuid IS NULL OR (opened_at, id) < (
                 SELECT opened_at, id FROM fedstac.quarantine_case WHERE id = $4))
           ORDER BY opened_at DESC, id DESC LIMIT $5""",
        projects, is_open, text, after, limit,
    )  # fmt: skip
    return [StoredCase(**{**dict(row), "links": tuple(row["links"])}) for row in rows]


async def case_projects(conn: Connection) -> list[str]:
    """Return the projects that cases of quarantine are of."""
    rows = await conn.fetch("SELECT DISTINCT collection FROM fedstac.quarantine_case")
    return [row["collection"] for row in rows]
