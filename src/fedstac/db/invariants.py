"""The invariants as assertions over the stored state: `fedstac admin check`, and tests.

Each is one statement that selects what contradicts it, set-wise, so that a large catalogue costs disk and time but no
memory. On an index node's database the assertions about an origin hold of nothing; those about a consumer speak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import asyncpg
import orjson

from fedstac.db.connections import Connection
from fedstac.domain import documents, events
from fedstac.domain.audit import GENESIS
from fedstac.runtime.causes import is_refusal

MOST_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that does not hold, and a few of the things that contradict it."""

    name: str
    statement: str
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Invariant:
    """`query` selects a column `example`: one sentence for each thing that contradicts the statement."""

    name: str
    statement: str
    query: str


HERE = "(SELECT origin FROM fedstac.feed_state)"
# Old events go by dropping partitions. What refers to a dropped one cannot be judged.
FIRST_KEPT = "(SELECT id + 1 FROM fedstac.forgotten)"
FORGOTTEN = "(SELECT pos FROM fedstac.forgotten)"
COMPLETE = f"({FIRST_KEPT} = 1)"
# The server's part of a search copy, as documents.state_of makes it.
MICROSECONDS = """'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'"""
CREATED = f"to_char(r.created AT TIME ZONE 'UTC', {MICROSECONDS})"
UPDATED = f"to_char(r.updated AT TIME ZONE 'UTC', {MICROSECONDS})"
STATE = f"""jsonb_build_object('latest', r.latest, 'retracted', r.state = 'retracted', 'created', {CREATED},
                               'updated', {UPDATED}, 'fedstac:state', r.state)
            || CASE WHEN r.cv_version IS NULL THEN '{{}}'::jsonb
                    ELSE jsonb_build_object('fedstac:cv_version', r.cv_version) END
            || CASE WHEN r.retraction IS NULL THEN '{{}}'::jsonb
                    ELSE jsonb_build_object('fedstac:retraction', r.retraction::jsonb) END
            || CASE WHEN r.access = 'open' THEN '{{}}'::jsonb
                    ELSE jsonb_build_object('fedstac:access', r.access) END
            || CASE WHEN r.replicas IS NULL THEN '{{}}'::jsonb
                    ELSE jsonb_build_object('fedstac:replicas', r.replicas::jsonb) END
            || jsonb_strip_nulls(jsonb_build_object(
                   'alternate:name', fedstac.nodes_of(r.document::jsonb, r.replicas::jsonb)))"""
# Its times, as documents.prepare makes them of the properties as they were written.
START, END = (
    rf"""regexp_replace(coalesce(nullif(d.written->>'{name}_datetime', ''), d.written->>'datetime'),
                        '(\.\d{{6}})\d+', '\1')::timestamptz"""
    for name in ("start", "end")
)
# What an event says about latest. Its document comes last, and a quote inside a string is written \\", so that the
# first match is the event's own.
CLAIM = """(substring(o.event FROM '"latest":(true|false)') = 'true')"""
OF_GRANTS = "o.type LIKE 'org.fedstac.grant.%'"  # events that are neither of a dataset nor of a collection
WIDE = "tstzrange('-infinity', 'infinity', '[]')"

INVARIANTS = (
    Invariant(
        "I1",
        "no accepted item is lost: a request has all its items, numbered from 0, and what is not final can be worked",
        """SELECT format('request %s accepted %s items and has %s, numbered %s to %s', r.id, r.total, count(i.n),
                         min(i.n), max(i.n)) AS example
           FROM fedstac.request r LEFT JOIN fedstac.request_item i ON i.request = r.id GROUP BY r.id
           HAVING count(i.n) <> r.total OR min(i.n) <> 0 OR max(i.n) <> r.total - 1
           UNION ALL
           SELECT format('item %s of request %s is queued without a document, or in a shard that nobody works',
                         i.n, i.request)
           FROM fedstac.request_item i WHERE i.status = 'queued'
             AND (i.document IS NULL OR NOT EXISTS (SELECT 1 FROM fedstac.shard s WHERE s.n = i.shard))""",
    ),
    Invariant(
        "I1",
        "a dump of this database restores: every function that its tables, indexes and triggers call has a search_path",
        """SELECT format('%s has none, and pg_restore fails on what calls it; run fedstac migrate', f) AS example
           FROM fedstac.functions_without_path() f""",
    ),
    Invariant(
        "I2",
        "an item is done if and only if its event exists or nothing changed",
        f"""SELECT format('item %s of request %s (%s) is %s, %s, with the event %s', i.n, i.request, i.dataset,
                          i.status, i.outcome, i.last_event) AS example
            FROM fedstac.request_item i JOIN fedstac.request r ON r.id = i.request
            LEFT JOIN fedstac.outbox o ON o.id = i.last_event
            WHERE CASE WHEN i.status = 'done' AND i.outcome IS DISTINCT FROM 'identical'
                       THEN coalesce(i.last_event >= {FIRST_KEPT}, true)
                            AND (o.collection, o.dataset) IS DISTINCT FROM (r.collection, i.dataset)
                       ELSE i.last_event IS NOT NULL END""",
    ),
    Invariant(
        "I2",  # between requests it cannot be told afterwards: which 202 went out first is not stored
        "the items of one lineage in one request were performed in their order",
        """SELECT format('item %s of request %s (%s) was performed before an item that precedes it', n, request, key)
                  AS example
           FROM (SELECT i.request, i.n, o.key, i.last_event,
                        max(i.last_event) OVER (PARTITION BY i.request, o.key ORDER BY i.n
                                                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS earlier
                 FROM fedstac.request_item i JOIN fedstac.outbox o ON o.id = i.last_event) performed
           WHERE last_event < earlier""",
    ),
    Invariant(
        "I4",
        "a record and the newest event of its dataset agree; none is there without the other",
        f"""SELECT format('%s: the record is at seq %s (%s), the newest event at seq %s (%s)',
                          coalesce(r.lineage, e.key) || ' ' || coalesce(r.id, e.dataset), r.seq,
                          left(encode(r.digest, 'hex'), 8), e.seq, left(encode(e.digest, 'hex'), 8)) AS example
            FROM (SELECT DISTINCT ON (collection, dataset) key, collection, dataset, seq, digest FROM fedstac.outbox
                  WHERE dataset IS NOT NULL ORDER BY collection, dataset, seq DESC, id DESC) e
            FULL JOIN (SELECT collection, id, lineage, seq, digest FROM fedstac.record WHERE origin = {HERE}) r
                 ON r.collection = e.collection AND r.id = e.dataset
            WHERE (r.lineage, r.seq, r.digest) IS DISTINCT FROM (e.key, e.seq, e.digest)
              AND ({COMPLETE} OR e.dataset IS NOT NULL)""",
    ),
    Invariant(
        "I4",
        "a collection and its newest event agree; none is there without the other",
        f"""SELECT format('%s: the collection is at seq %s, the newest event at seq %s', coalesce(c.id, e.collection),
                          c.seq, e.seq) AS example
            FROM (SELECT DISTINCT ON (collection) collection, seq, digest FROM fedstac.outbox o
                  WHERE dataset IS NULL AND NOT {OF_GRANTS} ORDER BY collection, seq DESC, id DESC) e
            FULL JOIN (SELECT id, seq, digest FROM fedstac.collection WHERE origin = {HERE}) c ON c.id = e.collection
            WHERE (c.seq, c.digest) IS DISTINCT FROM (e.seq, e.digest)
              AND ({COMPLETE} OR e.collection IS NOT NULL)""",
    ),
    Invariant(
        "I4",
        "what was asked for and changed something has an audit row with what it became, and its event",
        f"""SELECT format('%s: its record has no audit row', r.collection || '/' || r.id) AS example
            FROM fedstac.record r WHERE r.origin = {HERE} AND NOT EXISTS (
                SELECT 1 FROM fedstac.audit a WHERE a.collection = r.collection AND a.dataset = r.id
                   AND a.digest_after IS NOT NULL)
            UNION ALL
            SELECT format('event %s of %s: no audit row', o.id, o.key)
            FROM fedstac.outbox o WHERE o.id >= {FIRST_KEPT} AND NOT {OF_GRANTS} AND NOT EXISTS (
                SELECT 1 FROM fedstac.audit a WHERE a.collection = o.collection
                   AND a.dataset = coalesce(o.dataset, o.collection) AND a.digest_after = o.digest)
            UNION ALL
            SELECT format('audit row %s of %s: no event', a.id, a.collection || '/' || a.dataset)
            FROM fedstac.audit a WHERE a.digest_after IS NOT NULL AND {COMPLETE} AND NOT EXISTS (
                SELECT 1 FROM fedstac.outbox o WHERE o.collection = a.collection
                   AND coalesce(o.dataset, o.collection) = a.dataset AND o.digest = a.digest_after)""",
    ),
    Invariant(
        "I5",
        "positions are dense, and every event that the sequencer could see has one",
        f"""SELECT format('positions %s to %s are %s in number; the state says %s', min(f.pos), max(f.pos),
                          count(f.pos), (SELECT pos FROM fedstac.feed_state)) AS example
            FROM fedstac.feed f WHERE f.pos > {FORGOTTEN}
            HAVING count(f.pos) <> coalesce(max(f.pos) - min(f.pos) + 1, 0) OR min(f.pos) > {FORGOTTEN} + 1
                OR coalesce(max(f.pos), {FORGOTTEN}) <> (SELECT pos FROM fedstac.feed_state)
            UNION ALL
            SELECT format('event %s of %s was visible and was passed over', o.id, o.key)
            FROM fedstac.outbox o WHERE pg_visible_in_snapshot(o.xid, (SELECT snap FROM fedstac.feed_state))
              AND o.id >= {FIRST_KEPT} AND NOT EXISTS (SELECT 1 FROM fedstac.feed f WHERE f.id = o.id)
            UNION ALL
            SELECT format('position %s is that of event %s, which is not there', f.pos, f.id)
            FROM fedstac.feed f WHERE f.id >= {FIRST_KEPT}
              AND NOT EXISTS (SELECT 1 FROM fedstac.outbox o WHERE o.id = f.id)""",
    ),
    Invariant(
        "I6",
        "a lineage's events are numbered without gaps, and stand in the feed in that order",
        f"""SELECT format('%s: the event at position %s has seq %s and follows seq %s', key, pos, seq, before)
                   AS example
            FROM (SELECT o.key, f.pos, o.seq, lag(o.seq) OVER (PARTITION BY o.key ORDER BY f.pos) AS before
                  FROM fedstac.feed f JOIN fedstac.outbox o ON o.id = f.id) ordered
            WHERE seq <> before + 1 OR (before IS NULL AND seq <> 1 AND {COMPLETE})
            UNION ALL
            SELECT format('%s: the lineage counts %s events; %s are stored, the last with seq %s', l.key, l.seq,
                          count(o.id), max(o.seq))
            FROM fedstac.lineage l LEFT JOIN fedstac.outbox o ON o.key = l.key WHERE l.origin = {HERE}
            GROUP BY l.key
            HAVING l.seq <> coalesce(max(o.seq), l.seq) OR (count(o.id) <> l.seq AND {COMPLETE})
            UNION ALL
            SELECT format('%s: the record is at seq %s, its lineage at %s', r.id, r.seq, l.seq)
            FROM fedstac.record r JOIN fedstac.lineage l ON l.key = r.lineage
            WHERE r.seq > l.seq OR r.origin <> l.origin""",
    ),
    Invariant(
        "I7",
        "the audit log is one chain: nothing in it was changed, removed, moved or put in",
        f"""SELECT format('position %s: %s', pos, CASE WHEN pos <> prior + 1 THEN 'it follows position ' || prior
                          WHEN entry IS NULL THEN 'its row is gone' ELSE 'its row is not the one written there' END)
                   AS example
            FROM (SELECT c.pos, c.hash, lag(c.hash, 1, decode('{GENESIS.hex()}', 'hex')) OVER placed AS before,
                         lag(c.pos, 1, 0::bigint) OVER placed AS prior,
                         CASE WHEN a.id IS NOT NULL THEN fedstac.audit_text(a, c.pos) END AS entry
                  FROM fedstac.audit_chain c LEFT JOIN fedstac.audit a ON a.id = c.id
                  WINDOW placed AS (ORDER BY c.pos)) linked
            WHERE pos <> prior + 1 OR entry IS NULL OR hash <> sha256(before || convert_to(entry, 'UTF8'))
            UNION ALL
            SELECT format('the head is at position %s, the last row at position %s', h.pos, c.pos)
            FROM (SELECT (SELECT pos FROM fedstac.audit_head) AS pos, (SELECT hash FROM fedstac.audit_head) AS hash) h
            LEFT JOIN (SELECT pos, hash FROM fedstac.audit_chain ORDER BY pos DESC LIMIT 1) c ON true
            WHERE (h.pos, h.hash) IS DISTINCT FROM (coalesce(c.pos, 0),
                                                    coalesce(c.hash, decode('{GENESIS.hex()}', 'hex')))
            UNION ALL
            SELECT format('audit row %s (%s %s) has no position', a.id, a.action, a.dataset) FROM fedstac.audit a
            WHERE pg_visible_in_snapshot(a.xid, (SELECT snap FROM fedstac.audit_head))
              AND NOT EXISTS (SELECT 1 FROM fedstac.audit_chain c WHERE c.id = a.id)""",
    ),
    Invariant(
        "I8",
        "what search finds is what the records show: the same datasets, properties and times",
        f"""SELECT format('%s %s', coalesce(r.collection || '/' || r.id, i.collection || '/' || i.id),
                          CASE WHEN i.id IS NULL THEN 'cannot be found'
                               WHEN r.id IS NULL THEN 'is found and is not there'
                               ELSE 'is found with other properties or times' END) AS example
            FROM (SELECT * FROM fedstac.record WHERE state IN ('published', 'retracted') AND access <> 'private') r
            FULL JOIN pgstac.items i ON i.collection = r.collection AND i.id = r.id
            LEFT JOIN LATERAL (SELECT r.document::jsonb->'properties' AS written) d ON true
            WHERE i.id IS NULL OR r.id IS NULL OR i.content->'properties' IS DISTINCT FROM d.written || {STATE}
               OR i.datetime <> {START} OR i.end_datetime <> {END}""",
    ),
    Invariant(
        "I8",
        "what searches know from the rows of codes is what the records and the search copies show",
        """SELECT format('%s %s', coalesce(r.collection || '/' || r.id, 'row ' || f.n),
                         CASE WHEN f.n IS NULL THEN 'has no row of codes, or is not shown by it'
                              WHEN r.n IS NULL THEN 'is shown by its row of codes and is not there'
                              ELSE 'has a row of codes that says something else; run fedstac migrate' END) AS example
           FROM (SELECT r.*, i.content->'properties' AS properties, i.datetime, i.end_datetime, i.geometry, c.key
                 FROM fedstac.record r JOIN pgstac.items i ON i.collection = r.collection AND i.id = r.id
                 JOIN pgstac.collections c ON c.id = r.collection
                 WHERE r.state IN ('published', 'retracted') AND r.access <> 'private') r
           FULL JOIN (SELECT * FROM fedstac.facet WHERE shown <> 0) f ON f.n = r.n
           LEFT JOIN fedstac.footprint g ON g.code = f.footprint
           WHERE f.n IS NULL OR r.n IS NULL OR f.collection <> r.key OR f.updated <> r.updated
              OR f.shown <> CASE r.state WHEN 'published' THEN 1 ELSE 2 END + CASE WHEN r.latest THEN 4 ELSE 0 END
              OR (f.starts, f.ends) <> (r.datetime, r.end_datetime)
              OR ST_AsEWKB(g.geometry) IS DISTINCT FROM ST_AsEWKB(r.geometry)
              OR (f.size, f.files) <> (
                  SELECT least(coalesce(sum(fedstac.bytes_of(value->'file:size')), 0), 9223372036854775807),
                         count(*) FILTER (WHERE value ? 'file:checksum' OR jsonb_typeof(value->'file:size') = 'number'
                                                AND value->>'file:size' ~ '^[0-9]+$')
                  FROM jsonb_each(r.document::jsonb->'assets') WHERE value->>'protocol' IS DISTINCT FROM 'kerchunk')
              OR EXISTS (
                  SELECT FROM fedstac.facet_slot s LEFT JOIN fedstac.term t ON t.code = f.codes[s.slot + 1]
                  WHERE s.collection = r.collection AND CASE
                      WHEN t.code IS NULL THEN f.codes[s.slot + 1] <> 0 OR r.properties ? s.property
                      ELSE t.facet <> s.property OR NOT r.properties ? s.property OR t.content <> jsonb_build_object(
                               'properties', jsonb_build_object(s.property, r.properties->s.property)) END)""",
    ),
    Invariant(
        "I8",
        "the fold of the feed gives the records: the last event of each dataset, latest by C1",
        f"""WITH pending AS (
                SELECT DISTINCT o.key FROM fedstac.outbox o
                WHERE o.id >= {FIRST_KEPT} AND NOT EXISTS (SELECT 1 FROM fedstac.feed f WHERE f.id = o.id)),
            last AS (
                SELECT DISTINCT ON (o.collection, o.dataset) o.collection, o.dataset, o.key, o.seq, o.digest,
                       {CLAIM} AS claims
                FROM fedstac.feed f JOIN fedstac.outbox o ON o.id = f.id WHERE o.dataset IS NOT NULL
                ORDER BY o.collection, o.dataset, o.seq DESC),
            fold AS (
                SELECT *, claims AND row_number() OVER (PARTITION BY key ORDER BY claims DESC, seq DESC) = 1 AS latest
                FROM last)
            SELECT format('%s: the record has %s, latest %s; the feed %s, latest %s', coalesce(r.id, e.dataset),
                          left(encode(r.digest, 'hex'), 8), r.latest, left(encode(e.digest, 'hex'), 8), e.latest)
                   AS example
            FROM fold e FULL JOIN (SELECT collection, id, lineage, digest, latest FROM fedstac.record
                                   WHERE origin = {HERE}) r ON r.collection = e.collection AND r.id = e.dataset
            WHERE (r.digest, r.latest) IS DISTINCT FROM (e.digest, e.latest) AND ({COMPLETE} OR e.dataset IS NOT NULL)
              AND NOT EXISTS (SELECT 1 FROM pending p WHERE p.key = coalesce(r.lineage, e.key))""",
    ),
    Invariant(
        "I8",
        "the tallies count the datasets of each collection that are found",
        """SELECT format('%s: %s datasets; the tally says %s', coalesce(r.collection, t.collection), coalesce(r.n, 0),
                  coalesce(t.n, 0)) AS example
           FROM (SELECT collection, count(*) AS n FROM fedstac.record
                 WHERE state IN ('published', 'retracted') AND access <> 'private'
                 GROUP BY 1) r
           FULL JOIN (SELECT collection, sum(records) AS n FROM fedstac.tally GROUP BY 1) t USING (collection)
           WHERE coalesce(r.n, 0) <> coalesce(t.n, 0)""",
    ),
    Invariant(
        "I9",
        "the digest of a record is that of its document's digest and its state",
        f"""SELECT format('%s/%s', r.collection, r.id) AS example FROM fedstac.record r
            WHERE r.digest <> sha256(r.document_digest || convert_to(concat_ws(E'\\n', r.collection, r.id, r.state,
                      CASE WHEN r.claims_latest THEN 'latest' ELSE '' END, {CREATED}, {UPDATED}, r.retraction,
                      CASE WHEN r.superseded THEN 'superseded' END, 'quarantine ' || r.quarantine,
                      'access ' || nullif(r.access, 'open')), 'UTF8'))""",
    ),
    Invariant(
        "I11",
        "a lineage has at most one latest, and it is the one that made the last claim (C1)",
        f"""SELECT format('%s: %s are latest', lineage, string_agg(id, ', ' ORDER BY id)) AS example
            FROM fedstac.record WHERE latest GROUP BY lineage HAVING count(*) > 1
            UNION ALL
            SELECT format('%s: latest is %s, and ought not to be', id, latest)
            FROM (SELECT r.id, r.latest, (r.epoch, r.seq) >= (l.claim_epoch, l.claim_seq) AND row_number() OVER (
                             PARTITION BY r.lineage ORDER BY r.epoch DESC, r.seq DESC, r.id DESC) = 1 AS is_last
                  FROM fedstac.record r JOIN fedstac.lineage l ON l.key = r.lineage WHERE r.claims_latest) claiming
            WHERE latest <> is_last
            UNION ALL
            SELECT format('%s is latest without claiming it, or claims it without being it at its origin', id)
            FROM fedstac.record
            WHERE (latest AND NOT claims_latest) OR (latest <> claims_latest AND origin = {HERE})""",
    ),
    Invariant(
        "I11",
        "at no position of the feed has a lineage two latest",
        f"""SELECT format('%s: %s latest at position %s', key, held, pos) AS example
            FROM (SELECT key, pos, sum(step) OVER (PARTITION BY key ORDER BY pos) AS held
                  FROM (SELECT key, pos, claims::int - coalesce(lag(claims::int) OVER (
                                   PARTITION BY key, dataset ORDER BY pos), 0) AS step
                        FROM (SELECT o.key, o.dataset, f.pos, {CLAIM} AS claims
                              FROM fedstac.feed f JOIN fedstac.outbox o ON o.id = f.id
                              WHERE o.dataset IS NOT NULL) said) steps) counted
            WHERE held > 1""",
    ),
    Invariant(
        "I14",
        "what is deleted stays deleted: its id has no other event than its purge, and no document",
        f"""SELECT format('%s: event %s (%s) came after its deletion', o.dataset, o.id, o.type) AS example
            FROM fedstac.outbox d JOIN fedstac.outbox o ON o.key = d.key AND o.collection = d.collection
                 AND o.dataset = d.dataset AND o.seq > d.seq
            WHERE d.type = '{events.DELETED}' AND o.type <> '{events.PURGED}'
            UNION ALL
            SELECT format('%s/%s was deleted, and %s', d.collection, d.dataset,
                          coalesce('is ' || r.state, 'has no tombstone'))
            FROM fedstac.deletion d LEFT JOIN fedstac.record r ON r.collection = d.collection AND r.id = d.dataset
            WHERE d.state IN ('deleted', 'purged') AND coalesce(r.state, '') NOT IN ('deleted', 'purged')
            UNION ALL
            SELECT format('%s/%s is %s, and more is left than a tombstone', collection, id, state)
            FROM fedstac.record WHERE state IN ('deleted', 'purged')
              AND coalesce(document, replicas, retraction, quarantine) IS NOT NULL""",
    ),
    Invariant(
        "I17",
        "what is hidden or private is in no search and no count, and no latest; a quarantine has a case",
        f"""SELECT format('%s/%s is %s and %s, and %s', r.collection, r.id, r.state, r.access, CASE
                              WHEN i.id IS NOT NULL
                              THEN 'searches find it' WHEN r.latest THEN 'it is the latest' ELSE 'it is counted' END)
                   AS example
            FROM fedstac.record r LEFT JOIN pgstac.items i ON i.collection = r.collection AND i.id = r.id
            LEFT JOIN fedstac.facet f ON f.n = r.n
            WHERE (r.state NOT IN ('published', 'retracted') OR r.access = 'private')
              AND (i.id IS NOT NULL OR f.shown <> 0 OR r.latest)
            UNION ALL
            SELECT format('%s/%s is %s without a quarantine, or has one and is %s', collection, id, state, state)
            FROM fedstac.record WHERE (state = 'quarantined' AND quarantine IS NULL)
               OR (state IN ('published', 'retracted') AND quarantine IS NOT NULL)
            UNION ALL
            SELECT format('%s/%s is under quarantine, and there is no case of it', r.collection, r.id)
            FROM fedstac.record r WHERE r.quarantine IS NOT NULL AND r.origin = {HERE} AND NOT EXISTS (
                SELECT FROM fedstac.quarantine_case c WHERE c.collection = r.collection AND c.dataset = r.id
                AND c.closed_at IS NULL)""",
    ),
    Invariant(
        "I20",
        "what became final has an audit row of its request: its own, or one that counts what was refused at the door",
        """SELECT format('item %s of request %s (%s) is %s, and no audit row says so', i.n, i.request, i.dataset,
                         i.status) AS example
           FROM fedstac.request_item i
           WHERE i.status <> 'queued'
             AND i.finished > coalesce((SELECT at FROM fedstac.migration WHERE name LIKE '%audit.sql'), 'infinity')
             AND NOT EXISTS (SELECT 1 FROM fedstac.audit a WHERE a.request = i.request AND a.dataset = i.dataset)
             AND NOT EXISTS (SELECT 1 FROM fedstac.audit a WHERE a.request = i.request AND a.items > 1)""",
    ),
    Invariant(
        "I21",
        "deleted only when each required part was done or waived, identifiers had an owner, and the grace was over",
        f"""SELECT format('%s/%s was deleted %s', d.collection, d.dataset, CASE
                          WHEN d.ended_at < d.grace_until THEN 'before its grace was over'
                          WHEN p.name IS NOT NULL THEN 'before ' || p.name || ' had done its part'
                          ELSE 'without an owner of its identifiers' END) AS example
            FROM fedstac.deletion d LEFT JOIN fedstac.deletion_dependency p
                 ON p.deletion = d.id AND p.required AND p.state NOT IN ('ok', 'nothing to do', 'waived')
            WHERE d.state IN ('deleted', 'purged') AND (d.ended_at < d.grace_until OR p.name IS NOT NULL OR (
                      cardinality(d.identifiers) > 0 AND NOT EXISTS (
                          SELECT FROM fedstac.deletion_dependency o WHERE o.deletion = d.id AND o.owns_identifier)))
            UNION ALL
            SELECT format('event %s: %s was deleted, and no deletion says so', o.id, o.dataset)
            FROM fedstac.outbox o WHERE o.type = '{events.DELETED}' AND NOT EXISTS (
                SELECT FROM fedstac.deletion d WHERE d.collection = o.collection AND d.dataset = o.dataset
                AND d.state IN ('deleted', 'purged'))
            UNION ALL
            SELECT format('%s/%s is %s, and its deletion is open', d.collection, d.dataset, coalesce(r.state, 'gone'))
            FROM fedstac.deletion d LEFT JOIN fedstac.record r ON r.collection = d.collection AND r.id = d.dataset
            WHERE d.state = 'open' AND r.state IS DISTINCT FROM 'marked'""",
    ),
    Invariant(
        "I21",
        "what an open deletion says of its parts, for lists and counts, is what they come to",
        """SELECT format('%s/%s says (%s, %s, %s), and its parts come to (%s, %s, %s)', d.collection, d.dataset,
                         d.is_blocked, d.has_failed, d.late_after, p.is_blocked, p.has_failed, p.late_after) AS example
           FROM fedstac.deletion d CROSS JOIN LATERAL (
               SELECT count(*) FILTER (WHERE required AND state IN ('pending', 'failed')) > 0
                      OR cardinality(d.identifiers) > 0 AND count(*) FILTER (WHERE owns_identifier) = 0 AS is_blocked,
                      count(*) FILTER (WHERE state = 'failed') > 0 AS has_failed,
                      min(due) FILTER (WHERE state IN ('pending', 'failed')) AS late_after
               FROM fedstac.deletion_dependency WHERE deletion = d.id) p
           WHERE d.state = 'open' AND (d.is_blocked, d.has_failed, d.late_after)
                                      IS DISTINCT FROM (p.is_blocked, p.has_failed, p.late_after)""",
    ),
    Invariant(
        "I22",
        "what a dependency says of its part it said itself: there is its report in the audit log",
        """SELECT format('%s/%s: %s is %s, and never reported it', d.collection, d.dataset, p.name, p.state) AS example
           FROM fedstac.deletion_dependency p JOIN fedstac.deletion d ON d.id = p.deletion
           WHERE p.state IN ('ok', 'failed', 'nothing to do') AND NOT EXISTS (
               SELECT FROM fedstac.audit a WHERE a.action = 'report-deletion' AND a.collection = d.collection
                 AND a.dataset = d.dataset AND a.detail::jsonb @> jsonb_build_object(
                         'deletion', d.id, 'name', p.name, 'outcome', p.state))""",
    ),
    Invariant(
        "I23",
        "events get their positions: none waits for over a minute",
        f"""SELECT format('event %s of %s waits since %s', o.id, o.key, o.at) AS example FROM fedstac.outbox o
           WHERE o.at < clock_timestamp() - interval '1 minute' AND o.id >= {FIRST_KEPT}
             AND NOT EXISTS (SELECT 1 FROM fedstac.feed f WHERE f.id = o.id)""",
    ),
    Invariant(
        "I23",
        "writers never wait for a partition: three of the outbox are ahead, and pgstac's have no bounds",
        f"""SELECT format('%s partitions of the outbox are ahead', count(*)) AS example
            FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
            WHERE i.inhparent = 'fedstac.outbox'::regclass AND substring(c.relname FROM 8)::bigint >
                  (SELECT coalesce(max(id), 1) - 1 FROM fedstac.outbox) / 1000000
            HAVING count(*) < 3
            UNION ALL
            SELECT format('%s: pgstac.%s takes times %s to %s only; run fedstac migrate', collection, partition,
                          constraint_dtrange, constraint_edtrange)
            FROM pgstac.partition_sys_meta
            WHERE NOT (constraint_dtrange @> {WIDE} AND constraint_edtrange @> {WIDE})
            UNION ALL
            SELECT format('%s: pgstac has%s the collection, and it is%s here', coalesce(c.id, p.id),
                          CASE WHEN p.id IS NULL THEN ' not' END, CASE WHEN c.id IS NULL THEN ' not' END)
            FROM (SELECT DISTINCT id FROM fedstac.collection WHERE document IS NOT NULL) c
            FULL JOIN pgstac.collections p ON p.id = c.id WHERE c.id IS NULL OR p.id IS NULL""",
    ),
    Invariant(
        "I23",
        "a consumer has a cursor for each origin, and has parked nothing",
        f"""SELECT format('%s: no cursor', origin) AS example
            FROM (SELECT origin FROM fedstac.record UNION SELECT origin FROM fedstac.collection) o
            WHERE origin <> {HERE} AND NOT EXISTS (
                SELECT 1 FROM fedstac.consumer_cursor c WHERE c.origin = o.origin AND c.consumer = 'index')
            UNION ALL
            SELECT format('%s: the cursor is in epoch %s, and %s in %s', c.origin, c.epoch, r.id, r.epoch)
            FROM fedstac.consumer_cursor c JOIN fedstac.record r ON r.origin = c.origin AND r.epoch > c.epoch
            WHERE c.snapshot IS NULL AND c.consumer = 'index'
            UNION ALL
            SELECT format('%s: event %s of %s is parked: %s', origin, event_id, subject, detail)
            FROM fedstac.parked_event""",
    ),
)
DOCUMENTS = Invariant("I9", "the digests of documents and files are those of what is stored", "")


async def check(conn: Connection, *, say: Callable[[str, str], None] = lambda name, statement: None) -> list[Violation]:
    """Return the violations, all seen in one snapshot. `say` gets the name and the statement of each before its turn.

    Join a transaction that is open.
    """
    isolation = None if conn.is_in_transaction() else "repeatable_read"
    violations: list[Violation] = []
    async with conn.transaction(isolation=isolation):  # type: ignore[arg-type]
        for invariant in (*INVARIANTS, DOCUMENTS):
            say(invariant.name, invariant.statement)
            try:
                async with conn.transaction():
                    examples = await _examples(conn, invariant)
            except asyncpg.UndefinedTableError as error:
                examples = [f"{error}: the database was not restored as a whole, or fedstac migrate has not run"]
            except asyncpg.PostgresError as error:
                if not is_refusal(error):
                    raise
                examples = [f"something stored cannot be read: {error.args[0] if error.args else error.sqlstate}"]
            if examples:
                violations.append(Violation(invariant.name, invariant.statement, tuple(examples)))
    return violations


async def _examples(conn: Connection, invariant: Invariant) -> list[str]:
    if invariant is DOCUMENTS:
        return await _broken_documents(conn)
    rows = await conn.fetch(f"SELECT example FROM ({invariant.query}) found LIMIT {MOST_EXAMPLES}")
    return [row["example"] for row in rows]


async def _broken_documents(conn: Connection) -> list[str]:
    """Stream the documents and return what is wrong with them: canonical JSON is made here, not in SQL."""
    examples: list[str] = []
    rows = conn.cursor(
        """SELECT collection, id, document, document_digest, files_digest FROM fedstac.record
           WHERE document IS NOT NULL
           UNION ALL SELECT id, NULL, document, digest, NULL FROM fedstac.collection WHERE document IS NOT NULL""",
        prefetch=500,
    )
    async for collection, item, text, digest, files in rows:
        examples += [f"{collection}/{item or ''}: {what}" for what in _broken(bool(item), text, digest, files)]
        if len(examples) >= MOST_EXAMPLES:
            break
    return examples[:MOST_EXAMPLES]


def _broken(is_dataset: bool, text: str, digest: bytes, files: bytes) -> Iterator[str]:
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        yield "the document is no JSON"
        return
    if documents.digest(document) != digest:
        yield "the digest of the document differs"
    if is_dataset and documents.files_digest(document["assets"]) != files:
        yield "the digest of the files differs"
    if is_dataset and not (text.startswith(documents.HEADS) and text.endswith(documents.TAIL)):
        yield "the server's links and state cannot be spliced into the text"
