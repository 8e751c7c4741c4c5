-- The records, the write path's locks, the outbox and its feed, requests, nodes and tokens.
-- Runs as the owner, after pgstac is there. Everything below lives in the schema fedstac.

CREATE TABLE fedstac.collection (
    id          text PRIMARY KEY,
    origin      text NOT NULL,
    epoch       bigint NOT NULL,
    seq         bigint NOT NULL,
    document    text COMPRESSION lz4,           -- null: deleted; the row stays, so that a late event brings nothing back
    digest      bytea NOT NULL,
    updated     timestamptz NOT NULL
);

-- All versions of one dataset name. Every write locks its lineages first, in the order of their keys.
CREATE TABLE fedstac.lineage (
    key         text PRIMARY KEY,               -- <collection>/<base id>
    origin      text NOT NULL,
    seq         bigint NOT NULL DEFAULT 0       -- how many events the lineage has had
);

CREATE TABLE fedstac.record (
    collection      text NOT NULL,
    id              text NOT NULL,
    lineage         text NOT NULL REFERENCES fedstac.lineage (key),
    origin          text NOT NULL,
    version         bigint,                     -- YYYYMMDD; null where the collection has no versions
    state           text NOT NULL CHECK (state IN ('published', 'retracted', 'marked', 'deleted', 'purged')),
    latest          boolean NOT NULL,           -- as shown
    claims_latest   boolean NOT NULL,           -- as the last event said (events.md, C1)
    epoch           bigint NOT NULL,
    seq             bigint NOT NULL,            -- of the last event of this dataset
    created         timestamptz NOT NULL,
    updated         timestamptz NOT NULL,
    document        text COMPRESSION lz4,
    document_digest bytea NOT NULL,
    files_digest    bytea NOT NULL,
    digest          bytea NOT NULL,
    publisher       text NOT NULL,
    cv_version      text,
    PRIMARY KEY (collection, id),
    CHECK (claims_latest OR NOT latest),
    CHECK ((document IS NULL) = (state IN ('deleted', 'purged')))
);
-- I11. A partial index cannot be deferred: writes demote before they promote.
CREATE UNIQUE INDEX record_one_latest ON fedstac.record (lineage) WHERE latest;
CREATE INDEX record_lineage ON fedstac.record (lineage);

-- How many datasets a collection has, as a sum of small changes: a single counter row would be a lock that all
-- writers of a collection share. Housekeeping sums the rows up.
CREATE TABLE fedstac.tally (
    collection  text NOT NULL,
    records     bigint NOT NULL
);

-- Events, written with the change. xid tells the sequencer which rows became visible since it last looked.
CREATE TABLE fedstac.outbox (
    id          bigint GENERATED ALWAYS AS IDENTITY,
    xid         xid8 NOT NULL DEFAULT pg_current_xact_id(),
    event_id    uuid NOT NULL,
    key         text NOT NULL,                  -- lineage key, or the collection's id for events of a collection
    collection  text NOT NULL,
    dataset     text,
    seq         bigint NOT NULL,
    type        text NOT NULL,
    digest      bytea NOT NULL,
    event       text COMPRESSION lz4 NOT NULL,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);
CREATE INDEX outbox_xid ON fedstac.outbox (xid);

-- The log: dense positions, written by the sequencer alone; its two keys are the fence against a second one.
CREATE TABLE fedstac.feed (
    pos         bigint PRIMARY KEY,
    id          bigint NOT NULL UNIQUE
);

CREATE TABLE fedstac.feed_state (
    one         boolean PRIMARY KEY DEFAULT true CHECK (one),
    origin      text NOT NULL,                  -- this node's name
    epoch       bigint NOT NULL,
    system_id   text NOT NULL,                  -- of the cluster: a restored or promoted database starts a new epoch
    timeline    text NOT NULL,
    snap        pg_snapshot NOT NULL,
    pos         bigint NOT NULL,
    signing_key bytea NOT NULL                  -- of paging tokens
);

CREATE TABLE fedstac.epoch (
    n               bigint PRIMARY KEY,
    forked_at_pos   bigint NOT NULL,
    at              timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE fedstac.request (
    id              uuid PRIMARY KEY,           -- random: knowing it is part of the permission to read it
    collection      text NOT NULL,
    action          text NOT NULL,
    total           integer NOT NULL,
    submitter       text NOT NULL,
    roles           text[] NOT NULL,            -- as of the 202
    user_agent      text,
    correlation     text NOT NULL,              -- x-request-id
    cv_version      text,
    created         timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- One row an item; a request's status is derived from its items. Queued rows are the queue of the workers.
CREATE TABLE fedstac.request_item (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    request         uuid NOT NULL REFERENCES fedstac.request (id),
    n               integer NOT NULL,           -- place in the request, from 0
    shard           smallint NOT NULL,
    dataset         text NOT NULL,
    document        text COMPRESSION lz4,       -- kept until done
    prepared        text COMPRESSION lz4,       -- what follows from the document, so that nobody parses it again
    status          text NOT NULL DEFAULT 'queued' CHECK (status IN ('queued', 'done', 'rejected', 'failed')),
    outcome         text,
    problem         text,                       -- the name of the problem that refused it
    detail          text,
    findings        jsonb,
    last_event      bigint,                     -- outbox id; null: nothing changed
    finished        timestamptz,
    UNIQUE (request, n),
    CHECK ((status = 'queued') = (finished IS NULL))
);
CREATE INDEX request_item_queue ON fedstac.request_item (shard, id) WHERE status = 'queued';

-- Requests of one lineage run in the order of their 202s: a worker holds a shard of the lineage keys while it works it.
CREATE TABLE fedstac.shard (
    n           smallint PRIMARY KEY,
    token       uuid,
    worker      text,
    until       timestamptz NOT NULL DEFAULT '-infinity',
    attempts    integer NOT NULL DEFAULT 0      -- claims without a result; a poison item is tried alone, then failed
);
INSERT INTO fedstac.shard (n) SELECT generate_series(0, 63);

CREATE TABLE fedstac.audit (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at              timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor           text NOT NULL,
    action          text NOT NULL,
    collection      text NOT NULL,
    dataset         text NOT NULL,
    request         uuid,
    outcome         text NOT NULL,
    digest_before   bytea,
    digest_after    bytea
);

-- What consumers have told: everything through `pos` is applied there. One row an acknowledgement that advanced.
CREATE TABLE fedstac.node_status (
    node        text NOT NULL,
    epoch       bigint NOT NULL,
    through     bigint NOT NULL,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (node, epoch, through)
);
CREATE TABLE fedstac.node_exception (
    node        text NOT NULL,
    event_id    text NOT NULL,
    outcome     text NOT NULL,
    detail      text NOT NULL,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (node, event_id)
);

-- A consumer's own place in each origin's feed, moved in the transaction that applies.
CREATE TABLE fedstac.cursor (
    origin      text PRIMARY KEY,
    epoch       bigint NOT NULL,
    pos         bigint NOT NULL,
    snapshot    text,                           -- set while a snapshot is being taken: the page to go on with
    updated     timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE fedstac.parked (
    origin      text NOT NULL,
    event_id    text NOT NULL,
    subject     text NOT NULL,
    pos         bigint NOT NULL,
    detail      text NOT NULL,
    event       text COMPRESSION lz4 NOT NULL,
    at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (origin, event_id)
);

CREATE TABLE fedstac.token (
    hash        bytea PRIMARY KEY,              -- sha-256 of the token; the token itself is shown once and never kept
    name        text NOT NULL,
    roles       text[] NOT NULL,
    created     timestamptz NOT NULL DEFAULT now()
);

-- Partitions of the outbox are made ahead, by whoever writes the log; ATTACH keeps the writers running.
CREATE FUNCTION fedstac.extend_outbox(ahead integer DEFAULT 3, rows_each bigint DEFAULT 1000000) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    drawn bigint;
    made integer := 0;
    wanted bigint;
    name text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('fedstac.extend_outbox'));
    SELECT coalesce(last_value, 1) INTO drawn FROM pg_sequences
        WHERE schemaname = 'fedstac' AND sequencename = 'outbox_id_seq';
    FOR wanted IN SELECT generate_series((drawn - 1) / rows_each, (drawn - 1) / rows_each + ahead) LOOP
        name := 'outbox_' || wanted;
        CONTINUE WHEN to_regclass('fedstac.' || name) IS NOT NULL;
        EXECUTE format('CREATE TABLE fedstac.%I (LIKE fedstac.outbox INCLUDING DEFAULTS INCLUDING COMPRESSION)', name);
        EXECUTE format('ALTER TABLE fedstac.outbox ATTACH PARTITION fedstac.%I FOR VALUES FROM (%s) TO (%s)',
                       name, wanted * rows_each + 1, (wanted + 1) * rows_each + 1);
        EXECUTE format('GRANT SELECT, INSERT ON fedstac.%I TO fedstac_writer', name);
        made := made + 1;
    END LOOP;
    RETURN made;
END $$;
REVOKE ALL ON FUNCTION fedstac.extend_outbox(integer, bigint) FROM public;

-- pgstac's statistics run would tighten the bounds that let inserts pass without a lock: put them back.
CREATE FUNCTION fedstac.widen_partitions() RETURNS integer
LANGUAGE sql SECURITY DEFINER SET search_path = pgstac, public, pg_temp AS $$
    SELECT count(pgstac.check_partition(id, tstzrange('-infinity', 'infinity', '[]'),
                                        tstzrange('-infinity', 'infinity', '[]')))::integer
    FROM pgstac.collections
$$;
REVOKE ALL ON FUNCTION fedstac.widen_partitions() FROM public;

-- Search pages by keyset in this order; thousands of datasets of one model start at the same moment.
CREATE INDEX items_fedstac_order ON pgstac.items (datetime DESC, collection DESC, id DESC);

GRANT USAGE ON SCHEMA fedstac TO fedstac_writer;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA fedstac TO fedstac_writer;
REVOKE UPDATE, DELETE ON fedstac.outbox, fedstac.audit, fedstac.feed FROM fedstac_writer;
GRANT UPDATE ON fedstac.outbox TO fedstac_writer; -- only for a new epoch, which takes retained rows out of the snapshot
REVOKE DELETE ON fedstac.lineage FROM fedstac_writer;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA fedstac TO fedstac_writer;
GRANT EXECUTE ON FUNCTION fedstac.extend_outbox(integer, bigint), fedstac.widen_partitions() TO fedstac_writer;
