-- A dataset that a full-state load cleared: without a document and without a tombstone, its id may be published again.
ALTER TABLE fedstac.record DROP CONSTRAINT record_state_check;
ALTER TABLE fedstac.record ADD CONSTRAINT record_state_check
    CHECK (state IN ('published', 'retracted', 'quarantined', 'marked', 'deleted', 'purged', 'cleared')) NOT VALID;
ALTER TABLE fedstac.record VALIDATE CONSTRAINT record_state_check;
ALTER TABLE fedstac.record DROP CONSTRAINT record_check1;
ALTER TABLE fedstac.record ADD CONSTRAINT record_document_check
    CHECK ((document IS NULL) = (state IN ('deleted', 'purged', 'cleared'))) NOT VALID;
ALTER TABLE fedstac.record VALIDATE CONSTRAINT record_document_check;

-- A full-state load: everything that shall exist in a collection, as it comes in parts, and what it is compared with.
CREATE TABLE fedstac.load (
    id              uuid PRIMARY KEY,
    collection      text NOT NULL,
    mode            text NOT NULL CHECK (mode IN ('apply', 'rebuild')),
    override        text,                       -- the reason for other files under the same version
    submitter       text NOT NULL,
    roles           text[] NOT NULL,
    identity        text,
    correlation     text NOT NULL,
    traceparent     text,
    created         timestamptz NOT NULL DEFAULT clock_timestamp(),
    compared_at     timestamptz,                -- since the last part came; the changes are those of that moment
    current         integer,                    -- datasets of this node in the collection at that moment
    bulk            uuid REFERENCES fedstac.bulk, -- the change of many datasets that applies it
    cancelled_by    text,
    CHECK (bulk IS NULL OR compared_at IS NOT NULL)
);
CREATE INDEX load_bulk ON fedstac.load (bulk);
CREATE INDEX load_created ON fedstac.load (created);

CREATE TABLE fedstac.load_part (
    load            uuid NOT NULL REFERENCES fedstac.load ON DELETE CASCADE,
    n               integer NOT NULL CHECK (n > 0),
    digest          bytea NOT NULL,             -- sha-256 of the body
    datasets        integer NOT NULL,
    received        timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (load, n)
);

CREATE TABLE fedstac.load_dataset (
    load            uuid NOT NULL REFERENCES fedstac.load ON DELETE CASCADE,
    dataset         text NOT NULL,
    part            integer,                    -- null: the dataset is here, and the load does not state it
    lineage         text NOT NULL,
    version         bigint,
    document        text COMPRESSION lz4,       -- until it is applied
    prepared        text COMPRESSION lz4,       -- what was computed of the document when it came
    coded           text,
    cv_version      text,
    document_digest bytea,
    problem         text,                       -- of one that is not valid: it changes nothing
    detail          text,
    change          text CHECK (change IN ('new', 'changed', 'unchanged', 'removed', 'held', 'invalid')),
    expected        bytea,                      -- digest of the record that it was compared with
    PRIMARY KEY (load, dataset)
);
CREATE INDEX load_dataset_part ON fedstac.load_dataset (load, part);
CREATE INDEX load_dataset_name ON fedstac.load_dataset (dataset);
GRANT SELECT, INSERT, UPDATE, DELETE ON fedstac.load, fedstac.load_part, fedstac.load_dataset TO fedstac_writer;

-- It is applied as a change of many datasets, each by its own command.
ALTER TABLE fedstac.bulk DROP CONSTRAINT bulk_action_check;
ALTER TABLE fedstac.bulk ADD CONSTRAINT bulk_action_check
    CHECK (action IN ('mark', 'unmark', 'quarantine', 'release', 'reconcile')) NOT VALID;
ALTER TABLE fedstac.bulk VALIDATE CONSTRAINT bulk_action_check;
ALTER TABLE fedstac.bulk DROP CONSTRAINT bulk_total_check;
ALTER TABLE fedstac.bulk ADD CONSTRAINT bulk_total_check CHECK (total BETWEEN 1 AND 1000000) NOT VALID;
ALTER TABLE fedstac.bulk VALIDATE CONSTRAINT bulk_total_check;
ALTER TABLE fedstac.bulk_dataset ADD COLUMN change text;  -- of a load: what becomes of the dataset
