-- What consumers of this node have to report of deletions to the origins that they follow, until those have it.
CREATE TABLE fedstac.own_report (
    consumer    text NOT NULL,
    origin      text NOT NULL,
    collection  text NOT NULL,
    dataset     text NOT NULL,
    event_id    uuid,                           -- of the mark; null: it was not seen, only what came of it
    is_marked   boolean NOT NULL,               -- it can still come to be asked for
    outcome     text CHECK (outcome IN ('ok', 'failed', 'nothing to do')),  -- null: not known yet
    comment     text,
    sends       integer NOT NULL DEFAULT 0,
    next_send   timestamptz NOT NULL DEFAULT clock_timestamp(),
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer, origin, collection, dataset)
);
CREATE INDEX own_report_due ON fedstac.own_report (consumer, origin, next_send) WHERE outcome IS NOT NULL;
CREATE INDEX own_report_open ON fedstac.own_report (consumer, origin)
    WHERE outcome IS NULL OR outcome = 'failed';

GRANT SELECT, INSERT, UPDATE, DELETE ON fedstac.own_report TO fedstac_writer;
GRANT SELECT ON fedstac.own_report TO fedstac_reader;
