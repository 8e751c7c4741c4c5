"""Reports of dependencies on their part of a deletion, as the publishing node stores them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

import orjson

from fedstac.db import audit, deletions
from fedstac.db.connections import Connection
from fedstac.domain import deletion_reports
from fedstac.domain.deletion import FULFILLED, Deletion, DependencyStatus
from fedstac.domain.deletion_reports import DependencyReport, ReportAnswer

ACTION = "report-deletion"  # in the audit log


async def store(
    conn: Connection, reports: Sequence[DependencyReport], *, actor: str, correlation: str | None = None
) -> list[ReportAnswer]:
    """Store reports in their order, with a row in the audit log for each that changes something; answer each.

    Joins the caller's transaction, and locks the deletions: none of them ends before the reports are stored.
    """
    if not reports:
        return []
    entries = await _locked(conn, reports)
    now = await deletions.now(conn)  # not before the lock: what was asked for meanwhile does not know of the reports
    statuses = {
        (entry.id, part.name): part for entry in {each.id: each for each in entries.values()}.values()
        for part in entry.dependencies
    }  # fmt: skip
    answers: list[ReportAnswer] = []
    changes: dict[tuple[UUID, str], DependencyStatus] = {}
    rows: list[audit.NewRow] = []
    for n, report in enumerate(reports):
        entry = entries.get(n)
        status = statuses.get((entry.id, report.name)) if entry is not None else None
        answer, after = deletion_reports.judge(entry, status, report, now=now)
        answers.append(answer)
        if entry is not None and after is not None:
            statuses[entry.id, report.name] = changes[entry.id, report.name] = after
            rows.append(_audit_row(entry, report, actor, correlation))
    await _change(conn, changes)
    await audit.append(conn, rows)
    return answers


async def _locked(conn: Connection, reports: Sequence[DependencyReport]) -> Mapping[int, Deletion]:
    """Lock the deletions that reports are about, and return them by the place of the report.

    Where a report names a dataset, that is its open deletion, else the last one that led to a deletion, else the last.
    """
    targets = await conn.fetch(
        """SELECT r.n, d.id FROM unnest($1::uuid[]) WITH ORDINALITY r (event_id, n)
           JOIN fedstac.deletion d ON d.event_id = r.event_id
           UNION ALL
           SELECT r.n, d.id FROM unnest($2::text[], $3::text[]) WITH ORDINALITY r (collection, dataset, n)
           CROSS JOIN LATERAL (SELECT id FROM fedstac.deletion WHERE collection = r.collection AND dataset = r.dataset
                               ORDER BY state <> 'open', state = 'unmarked', marked_at DESC, id DESC LIMIT 1) d""",
        [report.event_id for report in reports],
        [None if report.event_id else report.collection for report in reports],
        [None if report.event_id else report.dataset for report in reports],
    )
    rows = await conn.fetch(
        f"""SELECT {deletions.COLUMNS} FROM fedstac.deletion d WHERE id = ANY ($1::uuid[]) ORDER BY id FOR UPDATE""",
        list({target["id"] for target in targets}),
    )
    by_id = {entry.id: entry for entry in await deletions.with_dependencies(conn, rows)}
    return {target["n"] - 1: by_id[target["id"]] for target in targets}


async def _change(conn: Connection, changes: Mapping[tuple[UUID, str], DependencyStatus]) -> None:
    """Store how far dependencies are. Who has done its part is not reminded any more."""
    if changes:
        await conn.execute(
            """UPDATE fedstac.deletion_dependency p
               SET state = c.state, comment = c.comment, reported_at = c.reported_at, reports = p.reports + 1,
                   remind_next = CASE WHEN c.state = ANY ($6::text[]) THEN NULL ELSE p.remind_next END
               FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::timestamptz[])
                    c (deletion, name, state, comment, reported_at)
               WHERE p.deletion = c.deletion AND p.name = c.name""",
            [id for id, _ in changes], [name for _, name in changes], [each.state.value for each in changes.values()],
            [each.comment for each in changes.values()], [each.reported_at for each in changes.values()],
            [state.value for state in FULFILLED],
        )  # fmt: skip


def _audit_row(entry: Deletion, report: DependencyReport, actor: str, correlation: str | None) -> audit.NewRow:
    """Return the row of a report. Its comment is in the deletion alone, so that a purge can take it away."""
    detail = {"deletion": str(entry.id), "name": report.name, "outcome": report.outcome.value}
    return audit.NewRow(
        actor=actor, action=ACTION, collection=entry.collection, dataset=entry.dataset, request=None, outcome="done",
        before=None, after=None, correlation=correlation, detail=orjson.dumps(detail).decode(),
    )  # fmt: skip
