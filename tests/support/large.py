"""A database of 200 000 datasets with their requests, events and audit rows: at this size a wrong plan shows.

It is filled by statements of its own, in seconds, and not by the product: what stands in it is like a node's data in
its numbers, not in its documents.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
from psycopg import sql

from fedstac import bootstrap
from fedstac.settings import Settings
from tests.db import writing

DATASETS = 200_000  # two versions of each lineage, so half as many lineages
REQUESTS = DATASETS // 4  # of four items each
QUEUED = 2_000  # items, of the last requests
SUBMITTERS = 500
STARTS = 200  # different first moments of datasets
FIRST_START = datetime(1850, 1, 1, tzinfo=UTC)
THINGS = 20_000  # datasets of the collection `plain`, each at a place of its own
PARKED, ACKNOWLEDGED, PEOPLE = 1_000, 20_000, 5_000

# xid 3 is the first that a transaction can have: what is filled in is older than any look of the sequencer
FILL = """
CREATE TEMP TABLE dataset AS
SELECT n, lineage, 'CMIP6/' || base AS key, base || CASE n % 2 WHEN 0 THEN '.v20180101' ELSE '.v20200101' END AS id,
       base, n % 2 = 1 AS is_latest,
       CASE WHEN n % 500 = 0 THEN 'retracted' WHEN n % 1000 = 2 THEN 'marked' ELSE 'published' END AS state,
       timestamptz '2020-01-01 00:00Z' + n * interval '1 minute' AS at
FROM generate_series(0, {datasets} - 1) n, LATERAL (SELECT n / 2 AS lineage) l,
     LATERAL (SELECT format('CMIP6.CMIP.I%s.M%s.historical.r%si1p1f1.Amon.tas.gn', lineage % 40, lineage % 400, lineage)
              AS base) b;

INSERT INTO fedstac.lineage (key, origin, seq)
SELECT key, CASE lineage % 10 WHEN 9 THEN 'south' ELSE 'west' END, 2 FROM dataset WHERE is_latest;

INSERT INTO fedstac.record (collection, id, lineage, origin, version, state, latest, claims_latest, epoch, seq, created,
                            updated, document, document_digest, files_digest, digest, publisher, retraction)
SELECT 'CMIP6', id, key, CASE lineage % 10 WHEN 9 THEN 'south' ELSE 'west' END,
       right(id, 8)::bigint, state, is_latest, is_latest, 1, 1 + n % 2, at, at,
       json_build_object('type', 'Feature', 'id', id, 'collection', 'CMIP6', 'properties', '{{}}'::json)::text,
       sha256(id::bytea), sha256(base::bytea), sha256(id::bytea), 'submitter-' || n % {submitters},
       CASE WHEN state = 'retracted'
            THEN json_build_object('reason', 'wrong', 'replaced_by', base || '.v20200101')::text END
FROM dataset;

INSERT INTO {leaf} (id, geometry, collection, datetime, end_datetime, content)
SELECT id, ST_MakeEnvelope(-180 + lineage % 4, -90, 180, 90, 4326), 'CMIP6', start, start + interval '10 years',
       jsonb_build_object('properties', jsonb_build_object(
           'datetime', start, 'cmip6:institution_id', 'I' || lineage % 40, 'cmip6:source_id', 'M' || lineage % 400,
           'cmip6:experiment_id', 'historical', 'cmip6:variable_id', 'tas', 'latest', is_latest, 'retracted',
           state = 'retracted', 'created', at, 'updated', at))
FROM dataset, LATERAL (SELECT {first_start} + (lineage % {starts}) * interval '1 day' AS start) s
WHERE state <> 'marked';

INSERT INTO fedstac.lineage (key, origin, seq)
SELECT 'plain/thing-' || n, 'west', 1 FROM generate_series(1, {things}) n;
INSERT INTO fedstac.record (collection, id, lineage, origin, state, latest, claims_latest, epoch, seq, created, updated,
                            document, document_digest, files_digest, digest, publisher)
SELECT 'plain', 'thing-' || n, 'plain/thing-' || n, 'west', 'published', true, true, 1, 1, now(), now(),
       '{{}}', '', '', '', 'submitter-1'
FROM generate_series(1, {things}) n;
INSERT INTO {leaf_of_things} (id, geometry, collection, datetime, end_datetime, content)
SELECT 'thing-' || n, ST_SetSRID(ST_MakePoint(n % 360 - 180, n % 179 - 89), 4326), 'plain', at, at,
       '{{"properties": {{}}}}'
FROM generate_series(1, {things}) n, LATERAL (SELECT {first_start} + n * interval '1 day' AS at) a;

INSERT INTO fedstac.tally (collection, records) SELECT 'CMIP6', count(*) FROM dataset WHERE state <> 'marked';

INSERT INTO fedstac.outbox (xid, event_id, key, collection, dataset, seq, type, digest, event, at)
SELECT (3 + n / 1000)::text::xid8, gen_random_uuid(), key, 'CMIP6', id, 1 + n % 2, 'dataset.published',
       sha256(id::bytea), json_build_object('data', json_build_object('state', 'published', 'actor', 'a', 'publisher',
       'submitter-' || n % {submitters}))::text, at
FROM dataset ORDER BY n;
INSERT INTO fedstac.feed (pos, id) SELECT row_number() OVER (ORDER BY id), id FROM fedstac.outbox;
UPDATE fedstac.feed_state SET pos = (SELECT max(pos) FROM fedstac.feed), snap = pg_current_snapshot();
UPDATE fedstac.told SET pos = (SELECT max(pos) FROM fedstac.feed);

INSERT INTO fedstac.request (id, collection, action, total, submitter, roles, correlation, identity, created)
SELECT lpad(to_hex(n), 32, '0')::uuid, 'CMIP6', 'publish', 4, 'submitter-' || n % {submitters}, '{{admin}}', 'c' || n,
       '{{}}', timestamptz '2020-01-01 00:00Z' + n * interval '1 minute'
FROM generate_series(0, {requests} - 1) n;
INSERT INTO fedstac.request_item (request, n, shard, dataset, document, status, outcome, last_event, finished)
SELECT lpad(to_hex(n / 4), 32, '0')::uuid, n % 4, lineage % 64, id, CASE WHEN is_queued THEN '{{}}' END,
       CASE WHEN is_queued THEN 'queued' WHEN is_failed THEN 'failed' ELSE 'done' END,
       CASE WHEN is_queued THEN NULL WHEN is_failed THEN 'failed' ELSE 'new' END,
       CASE WHEN NOT is_queued THEN n + 1 END, CASE WHEN NOT is_queued THEN at END
FROM dataset, LATERAL (SELECT n >= {datasets} - {queued} AS is_queued, n % 10000 = 1 AS is_failed) s ORDER BY n;
INSERT INTO fedstac.alerted (about) SELECT 'item:' || id FROM fedstac.request_item WHERE status = 'failed';
INSERT INTO fedstac.idempotency (submitter, route, key, digest, request, at)
SELECT submitter, 'POST /collections/CMIP6/items', correlation, sha256(correlation::bytea), id,
       now() - interval '6 hours' FROM fedstac.request;

INSERT INTO fedstac.audit (xid, at, actor, action, collection, dataset, request, outcome, digest_after)
SELECT (3 + n / 1000)::text::xid8, at, 'submitter-' || n % {submitters}, 'publish', 'CMIP6', id,
       lpad(to_hex(n / 4), 32, '0')::uuid, 'done', sha256(id::bytea)
FROM dataset ORDER BY n;
INSERT INTO fedstac.audit_chain (pos, id, hash)
SELECT row_number() OVER (ORDER BY id), id, sha256(id::text::bytea) FROM fedstac.audit;
UPDATE fedstac.audit_head SET pos = (SELECT max(pos) FROM fedstac.audit_chain), snap = pg_current_snapshot();

INSERT INTO fedstac.file_mark (mark, collection, id) SELECT n, 'CMIP6', id FROM dataset;
INSERT INTO fedstac.esgf_event (consumer, origin, sameness, pos)
SELECT 'index', 'esgf', md5(n::text), n FROM generate_series(1, 100000) n;
INSERT INTO fedstac.esgf_waiting (consumer, origin, subject, sameness, pos, event)
SELECT 'index', 'esgf', 's' || n % 25000, md5(n::text), n, '{{}}' FROM generate_series(1, 50000) n;
INSERT INTO fedstac.parked_event (consumer, origin, event_id, subject, pos, detail, event, epoch, seq)
SELECT 'index', 'south', 'e' || n, 's' || n, n, 'unknown', '{{}}', 1, 1 FROM generate_series(1, {parked}) n;
INSERT INTO fedstac.node_status (node, epoch, through)
SELECT node, 1, n FROM unnest('{{east,north,south}}'::text[]) node, generate_series(1, {acknowledged}) n;
INSERT INTO fedstac.person (iss, sub) SELECT 'https://login.example', 'p' || n FROM generate_series(1, {people}) n;
INSERT INTO fedstac.own_group (name, project, institution, title, created_by)
SELECT 'g' || n, 'CMIP6', 'I' || n, '', 'admin' FROM generate_series(1, 200) n;
INSERT INTO fedstac.own_group_person (own_group, principal, part, added_by)
SELECT 'g' || 1 + n % 200, 'person:' || n, 'member', 'admin' FROM generate_series(1, {people}) n;
INSERT INTO fedstac.token (hash, name, roles)
SELECT sha256(n::text::bytea), 'token-' || n, '{{admin}}' FROM generate_series(1, {people}) n;
DROP TABLE dataset;
"""


def base_id(lineage: int) -> str:
    return f"CMIP6.CMIP.I{lineage % 40}.M{lineage % 400}.historical.r{lineage}i1p1f1.Amon.tas.gn"


def lineage_key(lineage: int) -> str:
    return f"CMIP6/{base_id(lineage)}"


def dataset_id(number: int) -> str:
    """Return the id of a dataset; the even ones are the first versions of their lineages."""
    return base_id(number // 2) + (".v20200101" if number % 2 else ".v20180101")


def request_id(number: int) -> UUID:
    return UUID(int=number)


def start(lineage: int) -> datetime:
    """Return the first moment of the datasets of a lineage."""
    return FIRST_START + timedelta(days=lineage % STARTS)


def fill(superuser: str, writer: str) -> None:
    """Fill a migrated, empty database. `superuser`, `writer`: how to connect to it."""
    with ThreadPoolExecutor(1) as thread:  # the caller may have an event loop
        thread.submit(asyncio.run, _start_node(writer)).result()
    with psycopg.connect(superuser) as conn:
        keys: dict[str, int] = dict(conn.execute("SELECT id, key FROM pgstac.collections").fetchall())
        conn.execute("SET search_path TO pgstac, public")
        conn.execute("SET fedstac.columns TO on")  # nobody asks for rows of codes: a trigger would make each of them
        conn.execute(
            sql.SQL(FILL).format(
                datasets=DATASETS, requests=REQUESTS, queued=QUEUED, submitters=SUBMITTERS, starts=STARTS,
                parked=PARKED, acknowledged=ACKNOWLEDGED, people=PEOPLE, first_start=FIRST_START,
                things=THINGS, leaf=sql.Identifier("pgstac", f"_items_{keys['CMIP6']}"),
                leaf_of_things=sql.Identifier("pgstac", f"_items_{keys['plain']}"),
            )
        )  # fmt: skip
    with psycopg.connect(superuser, autocommit=True) as conn:
        conn.execute("VACUUM")
        # datasets cover the globe, which makes statistics of 30 000 geometries a matter of minutes
        for target, columns in ((2, "geometry"), (100, "id, collection, datetime, end_datetime, content")):
            conn.execute(f"SET default_statistics_target = {target}")
            conn.execute(f"ANALYZE pgstac.items ({columns})")
        conn.execute(
            """DO $$ DECLARE name text; BEGIN
                   FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'fedstac' LOOP
                       EXECUTE format('ANALYZE fedstac.%I', name);
                   END LOOP; END $$"""
        )


async def _start_node(dsn: str) -> None:
    """Start the node `west` once, and create its collections."""
    async with bootstrap.node(Settings(dsn=dsn, node="west", _env_file=None)) as node:
        await writing.create_collections(node, "CMIP6", "plain")
