"""Purging: what a node still keeps of datasets that are gone, outside of their records, is redacted or deleted.

All of it joins the transaction of the change (docs/deletion.md, "What a purge removes, and what it cannot"). Ids, times
and actors stay, and so do the rows of the audit log: they quote nothing that is in a document.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import orjson

from fedstac.db.connections import Connection

PURGED_TEXT: Final = "removed when the dataset was purged"  # where a text was that has to be there
PURGED_SELECTION: Final = orjson.dumps({"removed": PURGED_TEXT}).decode()  # how a bulk chose its datasets
DatasetName = tuple[str, str]  # collection and id


async def redact_log(conn: Connection, datasets: Sequence[DatasetName]) -> None:
    """Cut the events of deleted datasets in the log and in the dead letters; their records are tombstones already.

    The log keeps positions, ids, digests and states. So whoever reads it, from whatever place, finds no document, and
    no reader has to look for one that was deleted.
    """
    await conn.execute("SELECT fedstac.redact_events($1::text[], $2::text[])", *_columns(datasets))
    await conn.execute(
        """UPDATE fedstac.dead_letter l SET event = fedstac.redacted_event(l.event)
           FROM unnest($1::text[], $2::text[]) d (collection, id)
           WHERE l.collection = d.collection AND l.dataset = d.id AND NOT (l.event LIKE '%,"redacted":true}}')
             AND l.type NOT IN ('org.fedstac.dataset.deleted.v1', 'org.fedstac.dataset.purged.v1')""",
        *_columns(datasets),
    )
    await _note(conn, datasets)


async def purge(conn: Connection, datasets: Sequence[DatasetName]) -> None:
    """Remove what this node has of its own purged datasets in requests, messages, deletions and cases."""
    names = _columns(datasets)
    await conn.execute(
        """UPDATE fedstac.request_item i
           SET document = NULL, prepared = NULL, coded = NULL, findings = NULL,
               detail = CASE WHEN i.detail IS NOT NULL THEN $3 END
           FROM unnest($1::text[], $2::text[]) d (collection, id), fedstac.request r
           WHERE i.dataset = d.id AND r.id = i.request AND r.collection = d.collection AND i.status <> 'queued'
             AND (i.document IS NOT NULL OR i.detail IS NOT NULL OR i.findings IS NOT NULL)""",
        *names, PURGED_TEXT,
    )  # fmt: skip
    await conn.execute(
        """UPDATE fedstac.bulk_dataset b SET detail = $3 FROM unnest($1::text[], $2::text[]) d (collection, id)
           WHERE b.dataset = d.id AND b.collection = d.collection AND b.detail IS NOT NULL""",
        *names, PURGED_TEXT,
    )  # fmt: skip
    await conn.execute(  # by what a filter chose it may be a word of its document; a load chose by no filter
        """UPDATE fedstac.bulk b SET selection = $3
           WHERE b.selection <> $3 AND b.action <> 'reconcile' AND b.id IN (
               SELECT c.bulk FROM unnest($1::text[], $2::text[]) d (collection, id)
               JOIN fedstac.bulk_dataset c ON c.dataset = d.id AND c.collection = d.collection)""",
        *names, PURGED_SELECTION,
    )  # fmt: skip
    await conn.execute(  # what full-state loads say of it
        """UPDATE fedstac.load_dataset l
           SET document = NULL, prepared = NULL, coded = NULL, detail = CASE WHEN l.detail IS NOT NULL THEN $3 END
           FROM unnest($1::text[], $2::text[]) d (collection, id), fedstac.load o
           WHERE l.dataset = d.id AND o.id = l.load AND o.collection = d.collection
             AND (l.document IS NOT NULL OR l.detail IS NOT NULL)""",
        *names, PURGED_TEXT,
    )  # fmt: skip
    await conn.execute(
        """UPDATE fedstac.dead_letter l
           SET reason = $3, event = CASE WHEN l.event LIKE '%,"redacted":true}}' THEN l.event
                                         ELSE fedstac.redacted_event(l.event) END
           FROM unnest($1::text[], $2::text[]) d (collection, id)
           WHERE l.collection = d.collection AND l.dataset = d.id""",
        *names, PURGED_TEXT,
    )  # fmt: skip
    await conn.execute(
        """UPDATE fedstac.subscription_event e SET reason = $3
           FROM unnest($1::text[], $2::text[]) d (collection, id)
           WHERE e.collection = d.collection AND e.dataset = d.id AND e.reason <> ''""",
        *names, PURGED_TEXT,
    )  # fmt: skip
    await conn.execute(  # what other nodes said of its events, and of its entry in a snapshot
        """UPDATE fedstac.node_exception e SET detail = $3 FROM unnest($1::text[], $2::text[]) d (collection, id)
           WHERE e.dataset = d.id AND e.collection = d.collection AND e.detail <> ''""",
        *names, PURGED_TEXT,
    )  # fmt: skip
    ids = [row["id"] for row in await conn.fetch(
        """UPDATE fedstac.deletion e SET reason = NULL, identifiers = '{}'
           FROM unnest($1::text[], $2::text[]) d (collection, id)
           WHERE e.collection = d.collection AND e.dataset = d.id RETURNING e.id""",
        *names,
    )]  # fmt: skip
    await conn.execute(
        """UPDATE fedstac.deletion_dependency SET comment = NULL
           WHERE deletion = ANY ($1::uuid[]) AND comment IS NOT NULL""",
        ids,
    )
    await conn.execute("SELECT fedstac.redact_waivers($1::uuid[])", ids)
    await conn.execute(
        """UPDATE fedstac.quarantine_case q
           SET reason = $3, reference = NULL, contact = NULL, links = '{}',
               decision = CASE WHEN q.decision IS NOT NULL THEN $3 END
           FROM unnest($1::text[], $2::text[]) d (collection, id)
           WHERE q.collection = d.collection AND q.dataset = d.id""",
        *names, PURGED_TEXT,
    )  # fmt: skip
    await purge_copies(conn, datasets, origin=None)


async def purge_copies(conn: Connection, datasets: Sequence[DatasetName], *, origin: str | None) -> None:
    """Remove what a consumer of datasets keeps beside their records: events that are set aside, troubles with them.

    origin: whose events go; None: of all origins, where the datasets are this node's own. It is noted what was purged,
    for those who keep something elsewhere.
    """
    subjects = [f"{collection}/{id}" for collection, id in datasets]
    await conn.execute(
        "DELETE FROM fedstac.parked_event WHERE subject = ANY ($1::text[]) AND ($2::text IS NULL OR origin = $2)",
        subjects, origin,
    )  # fmt: skip
    await conn.execute(  # the patches of a topic in ESGF's format are called CMIP6/… (PATCH)
        """DELETE FROM fedstac.parked_event
           WHERE subject LIKE '% (%)' AND split_part(subject, ' (', 1) = ANY ($1)
             AND ($2::text IS NULL OR origin = $2)""",
        subjects, origin,
    )  # fmt: skip
    await conn.execute(
        """DELETE FROM fedstac.esgf_waiting WHERE split_part(subject, ' (', 1) = ANY ($1::text[])
           AND ($2::text IS NULL OR origin = $2)""",
        subjects, origin,
    )  # fmt: skip
    await conn.execute(  # whatever names one of them; an address behind its name goes, too
        """UPDATE fedstac.trouble SET detail = $2, what = regexp_replace(what, ', .*', '')
           WHERE string_to_array(regexp_replace(what, '[,:](?= |$)', '', 'g'), ' ') && $1::text[]""",
        [*subjects, *(id for _, id in datasets)], PURGED_TEXT,
    )  # fmt: skip
    await _note(conn, datasets)


async def _note(conn: Connection, datasets: Sequence[DatasetName]) -> None:
    """Note that datasets were deleted or purged just now, by the last events that this node has of them."""
    await conn.execute(
        """INSERT INTO fedstac.redaction (collection, dataset, event)
           SELECT d.collection, d.id, (SELECT max(o.id) FROM fedstac.record r JOIN fedstac.outbox o ON o.key = r.lineage
                                       WHERE r.collection = d.collection AND r.id = d.id AND o.dataset = d.id)
           FROM unnest($1::text[], $2::text[]) d (collection, id) ORDER BY 1, 2
           ON CONFLICT (collection, dataset) DO UPDATE
               SET event = EXCLUDED.event, xid = EXCLUDED.xid, at = EXCLUDED.at""",
        *_columns(datasets),
    )


async def purge_replicas(conn: Connection, datasets: Sequence[DatasetName], *, origin: str) -> None:
    """Remove what a replica node keeps of purged datasets beside their rows, which have no documents any more.

    Only of those of this origin that are purged here now. The rows of files go with the files, as the removal of each
    is done.
    """
    rows = await conn.fetch(
        """SELECT d.n, d.collection, d.id FROM unnest($1::text[], $2::text[]) w (collection, id)
           JOIN fedstac.replica_dataset d ON d.collection = w.collection AND d.id = w.id
           WHERE d.event_state = 'purged' AND d.origin = $3""",
        *_columns(datasets), origin,
    )  # fmt: skip
    await purge_copies(conn, [(row["collection"], row["id"]) for row in rows], origin=origin)
    numbers = [row["n"] for row in rows]
    await conn.execute(
        "UPDATE fedstac.replica_removal SET reason = '' WHERE n = ANY ($1::bigint[]) AND reason <> ''", numbers
    )
    await conn.execute("DELETE FROM fedstac.replica_finding WHERE n = ANY ($1::bigint[])", numbers)


async def sinks_of(conn: Connection) -> list[tuple[str, str]]:
    """Return name and address of the sinks that events were sent to, by name. No address has a secret in it."""
    rows = await conn.fetch("SELECT name, address FROM fedstac.sink WHERE sent > 0 ORDER BY name")
    return [(row["name"], row["address"]) for row in rows]


async def newest(conn: Connection) -> int:
    """Return the outbox id of the last deletion or purge of this node's own datasets; 0 where there is none."""
    return int(await conn.fetchval("SELECT coalesce(max(event), 0) FROM fedstac.redaction"))


async def is_any_after(conn: Connection, pos: int) -> bool:
    """Tell whether datasets of this node were deleted or purged after a position of its feed, or a moment ago."""
    return bool(await conn.fetchval(
        """SELECT EXISTS (SELECT FROM fedstac.redaction r LEFT JOIN fedstac.feed f ON f.id = r.event
                          WHERE r.event > (SELECT id FROM fedstac.forgotten) AND (f.pos IS NULL OR f.pos > $1))""",
        pos,
    ))  # fmt: skip


def _columns(datasets: Sequence[DatasetName]) -> tuple[list[str], list[str]]:
    return [collection for collection, _ in datasets], [id for _, id in datasets]
