-- Sources of a replica node: how much of each cap is taken, and which hosts are away. And what its policy asks of datasets.

-- The bandwidth of a source of the policy, for all processes: what was taken so far has come by `free_at`. It is lost with
-- a crash, which costs nothing.
CREATE UNLOGGED TABLE fedstac.replica_source (
    source          text PRIMARY KEY,           -- its name in the policy
    free_at         timestamptz NOT NULL,
    rate            bigint NOT NULL             -- bytes a second, of the policy that it was counted by
);

-- A host that failed and has not given a file since.
CREATE TABLE fedstac.replica_host (
    host            text PRIMARY KEY,
    failures        integer NOT NULL,           -- in a row
    away_until      timestamptz NOT NULL,
    reason          text NOT NULL,
    since           timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- The policy is asked for all datasets at once, and their documents are large.
ALTER TABLE fedstac.replica_dataset
    ADD COLUMN facts jsonb GENERATED ALWAYS AS (document -> 'properties') STORED;

GRANT SELECT, INSERT, UPDATE, DELETE ON fedstac.replica_source, fedstac.replica_host TO fedstac_writer;
GRANT SELECT ON fedstac.replica_source, fedstac.replica_host TO fedstac_reader;
