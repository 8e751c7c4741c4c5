-- What is done once: messages of topics of acknowledgements. And what the manager and publications look at is cheap.

-- The last message that was taken of each topic of acknowledgements, stored with what it changed.
CREATE TABLE fedstac.status_topic (
    address     text NOT NULL,
    partition   text NOT NULL,
    identity    text NOT NULL,                  -- another one where the topic was made anew
    taken       bigint NOT NULL,                -- its offset
    PRIMARY KEY (address, partition)
) WITH (fillfactor = 50);
GRANT SELECT, INSERT, UPDATE ON fedstac.status_topic TO fedstac_writer;
GRANT SELECT ON fedstac.status_topic TO fedstac_reader;

-- The manager looks at the newest of these, to see whether anything changed since it found nothing to delete.
CREATE INDEX deletion_dependency_reported ON fedstac.deletion_dependency (reported_at) WHERE reported_at IS NOT NULL;
CREATE INDEX deletion_waiver_at ON fedstac.deletion_waiver (at);
CREATE INDEX deletion_configuration_at ON fedstac.deletion_configuration (at);

-- Publications put the marks of their files into a short list. It is short so that nobody waits while it is emptied.
ALTER INDEX fedstac.file_reference_marks SET (gin_pending_list_limit = 256);
