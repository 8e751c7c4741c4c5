-- Changes of many datasets that were shown before: who asked for what, the datasets, and what became of each.

CREATE TABLE fedstac.bulk (
    id              uuid PRIMARY KEY,
    action          text NOT NULL CHECK (action IN ('mark', 'unmark', 'quarantine', 'release')),
    body            text NOT NULL,              -- JSON that each command is made of: reason, quarantine, decision
    selection       text NOT NULL,              -- JSON: how the datasets were chosen
    digest          text NOT NULL,              -- of what was shown: the datasets, their states, the action
    total           integer NOT NULL CHECK (total BETWEEN 1 AND 100000),
    submitter       text NOT NULL,
    roles           text[] NOT NULL,
    identity        text,
    correlation     text NOT NULL,
    traceparent     text,
    created         timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at      timestamptz,                -- of its first part
    worked_at       timestamptz,                -- when its last part was done
    finished_at     timestamptz,
    cancelled_by    text,
    through         integer NOT NULL DEFAULT 0, -- datasets up to this number have their results
    done_count      integer NOT NULL DEFAULT 0,
    rejected_count  integer NOT NULL DEFAULT 0,
    failed_count    integer NOT NULL DEFAULT 0,
    attempts        smallint NOT NULL DEFAULT 0, -- at the next part, without a result
    CHECK (through = done_count + rejected_count + failed_count AND through <= total)
) WITH (fillfactor = 50);
-- The same answer is sent twice where the first was lost. A bulk that was cancelled may be asked for again.
CREATE UNIQUE INDEX bulk_asked ON fedstac.bulk (submitter, digest) WHERE cancelled_by IS NULL;
CREATE INDEX bulk_open ON fedstac.bulk (worked_at NULLS FIRST, created) WHERE finished_at IS NULL;
CREATE INDEX bulk_listed ON fedstac.bulk (created DESC, id);

CREATE TABLE fedstac.bulk_dataset (
    bulk            uuid NOT NULL REFERENCES fedstac.bulk ON DELETE CASCADE,
    n               integer NOT NULL,           -- the order of the work, from 1
    collection      text NOT NULL,
    dataset         text NOT NULL,
    lineage         text NOT NULL,
    digest          bytea NOT NULL,             -- of the state that was shown
    status          text NOT NULL DEFAULT 'waiting'
                    CHECK (status IN ('waiting', 'done', 'rejected', 'failed', 'cancelled')),
    outcome         text,
    problem         text,
    detail          text,
    finished        timestamptz,
    PRIMARY KEY (bulk, n)
) WITH (fillfactor = 70);

GRANT SELECT, INSERT, UPDATE ON fedstac.bulk, fedstac.bulk_dataset TO fedstac_writer;
GRANT SELECT ON fedstac.bulk, fedstac.bulk_dataset TO fedstac_reader;
