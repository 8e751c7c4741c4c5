-- A replica node's looks at its disk: verification and the import of what is there. A look that is interrupted goes on
-- at its place; it reads the database's files first, by number and asset, and then each tier, by path.
CREATE TABLE fedstac.replica_look (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind            text NOT NULL CHECK (kind IN ('verify', 'import')),
    by_checksum     boolean NOT NULL,
    sample_percent  double precision NOT NULL CHECK (sample_percent > 0 AND sample_percent <= 100),
    folder          text NOT NULL DEFAULT '',   -- that is imported
    phase           text NOT NULL DEFAULT 'files' CHECK (phase IN ('files', 'entries', 'disk', 'done')),
    after_n         bigint NOT NULL DEFAULT 0,
    after_asset     text NOT NULL DEFAULT '',
    after_tier      text,
    after_path      text NOT NULL DEFAULT '',
    files           bigint NOT NULL DEFAULT 0,  -- that should be here, and were looked at
    on_disk         bigint NOT NULL DEFAULT 0,  -- that the walk met
    bytes           bigint NOT NULL DEFAULT 0,  -- that were read
    entries         bigint NOT NULL DEFAULT 0,  -- of the federation, compared
    adopted         bigint NOT NULL DEFAULT 0,
    brake           text NOT NULL DEFAULT '',   -- why nothing is mended
    started         timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated         timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at     timestamptz
);
CREATE INDEX replica_look_open ON fedstac.replica_look (kind, id DESC);

-- What a look found. A finding that is mended says so; one that is left says why.
CREATE TABLE fedstac.replica_finding (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    look            bigint NOT NULL REFERENCES fedstac.replica_look ON DELETE CASCADE,
    fault           text NOT NULL CHECK (fault IN (
                        'dark', 'missing', 'truncated', 'wrong', 'wrongly announced', 'not announced', 'unknown')),
    n               bigint,                     -- of the dataset; NULL: nobody knows whose file it is
    asset           text,
    tier            text NOT NULL DEFAULT '',
    path            text NOT NULL DEFAULT '',   -- below the tier's folder
    size            bigint,
    changed_at      double precision,           -- seconds since the epoch: last change of its bytes or its name
    detail          text NOT NULL,
    outcome         text NOT NULL DEFAULT 'open' CHECK (outcome IN ('open', 'mended', 'left')),
    note            text NOT NULL DEFAULT ''
);
CREATE INDEX replica_finding_look ON fedstac.replica_finding (look, fault, id);

-- The pace of the transfers, and the files that were verified last.
CREATE INDEX replica_file_verified ON fedstac.replica_file (verified_at) WHERE verified_at IS NOT NULL;

-- What operators were told of and lasts still: a full disk, a budget that is reached, a source that stays away.
CREATE TABLE fedstac.replica_alarm (
    kind            text NOT NULL,
    thing           text NOT NULL,
    since           timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (kind, thing)
);

-- The room on the disk of each tier, as a process of the node last saw it.
CREATE TABLE fedstac.replica_disk (
    tier            text PRIMARY KEY,
    folder          text NOT NULL,
    free_bytes      bigint,                     -- NULL: the folder is not there
    at              timestamptz NOT NULL DEFAULT clock_timestamp()
);

GRANT SELECT, INSERT, UPDATE, DELETE ON fedstac.replica_look, fedstac.replica_finding, fedstac.replica_alarm,
    fedstac.replica_disk TO fedstac_writer;
GRANT SELECT ON fedstac.replica_look, fedstac.replica_finding, fedstac.replica_alarm, fedstac.replica_disk
    TO fedstac_reader;
