-- Transfers of a replica node: who works on what (docs/adr/0038), and where each file is fetched from next.

-- A claim is one worker's: files of one dataset that it fetches from one source of the policy (a lane), or a dataset that
-- it checks. It ends with its lease, and at once when the database session of its process ends.
CREATE TABLE fedstac.replica_claim (
    token         uuid PRIMARY KEY,
    n             bigint NOT NULL REFERENCES fedstac.replica_dataset ON DELETE CASCADE,
    kind          text NOT NULL CHECK (kind IN ('transfer', 'check')),
    lane          text NOT NULL DEFAULT '',         -- the source of the policy; its cap of connections counts these rows
    worker        text NOT NULL,
    backend       integer NOT NULL,
    backend_start timestamptz,
    until         timestamptz NOT NULL,
    at            timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX ON fedstac.replica_claim (n);
GRANT SELECT, INSERT, UPDATE, DELETE ON fedstac.replica_claim TO fedstac_writer;

ALTER TABLE fedstac.replica_dataset
    ADD COLUMN lane   text,                          -- that its next files wait in; NULL: to be chosen
    ADD COLUMN turn   timestamptz;                   -- when a worker last took some of its files
CREATE INDEX replica_dataset_turn ON fedstac.replica_dataset (lane, priority DESC, turn NULLS FIRST, n)
    WHERE state IN ('queued', 'transferring', 'waiting');
ALTER TABLE fedstac.replica_file
    ADD COLUMN href   text,                          -- that it is fetched from next; NULL: to be chosen
    ADD COLUMN node   text,                          -- whose copy that is
    ADD COLUMN lane   text;
CREATE INDEX replica_file_queued ON fedstac.replica_file (n, lane, asset) WHERE state = 'queued';
-- NULL: this source is not asked for the file again
ALTER TABLE fedstac.replica_source_fault ADD COLUMN until timestamptz;
-- One process announces, under a lock that goes with its session: a claim of each announcement is not needed.
ALTER TABLE fedstac.replica_announcement DROP COLUMN claim, DROP COLUMN claim_until, ADD COLUMN digest bytea;
GRANT SELECT ON fedstac.replica_claim TO fedstac_reader;
