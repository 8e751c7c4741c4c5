-- A replica node: what it knows of the datasets of its sources, which files it keeps, and what has to go.

-- One row for each dataset that the feeds have named, wanted or not. It stays after deletion, so that a late event brings
-- nothing back. Who changes files of a dataset locks its row here first.
CREATE TABLE fedstac.replica_dataset (
    n               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    origin          text NOT NULL,
    collection      text NOT NULL,
    id              text NOT NULL,
    lineage         text NOT NULL,
    -- the newest event
    epoch           bigint NOT NULL,
    seq             bigint NOT NULL,
    pos             bigint NOT NULL,            -- its place in the feed, or that of the snapshot that had it
    event_id        text NOT NULL DEFAULT '',
    event_state     text NOT NULL,              -- published, retracted, marked, quarantined, deleted, purged
    latest          boolean NOT NULL,
    retraction      jsonb,                      -- reason, errata, replaced_by, data
    document        jsonb COMPRESSION lz4,      -- as published; NULL: deleted
    size            bigint NOT NULL DEFAULT 0,  -- bytes of all its files
    files           integer NOT NULL DEFAULT 0,
    files_digest    bytea,                      -- of what replica_file has; NULL: it has less than the document
    -- what the policy says
    action          text NOT NULL CHECK (action IN ('replicate', 'restrict', 'ignore')),
    rule            text NOT NULL DEFAULT '',
    priority        integer NOT NULL DEFAULT 0,
    tier            text NOT NULL DEFAULT '',   -- where its files belong now: '' is the served tree, 'restricted' is not served
    "check"         text,                       -- the command that looks at its files once all are here; NULL: none
    on_superseded   text NOT NULL DEFAULT 'keep' CHECK (on_superseded IN ('keep', 'tier', 'purge')),
    on_retracted    text NOT NULL DEFAULT 'keep' CHECK (on_retracted IN ('keep', 'restrict', 'purge')),
    policy_digest   text NOT NULL DEFAULT '',
    -- how it stands, and how it shall
    goal            text NOT NULL DEFAULT 'ignore' CHECK (goal IN ('serve', 'hold', 'ignore', 'restrict', 'purge')),
    is_told         boolean NOT NULL DEFAULT true,  -- the origin takes a change of our entry
    state           text NOT NULL CHECK (state IN (
                        'catalogued', 'queued', 'transferring', 'waiting', 'checking', 'complete', 'announced', 'parked',
                        'moving', 'removing', 'restricted', 'removed')),
    reason          text NOT NULL DEFAULT '',
    until           timestamptz,                -- what waits goes on then
    attempts        integer NOT NULL DEFAULT 0,
    next_try        timestamptz,
    announced_digest bytea,                     -- of the files as the origin's entry has them; NULL: there is no entry
    request         uuid,                       -- of the announcement under way
    since           timestamptz NOT NULL DEFAULT clock_timestamp(),  -- in this state
    updated         timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (collection, id)
);
CREATE INDEX replica_dataset_state ON fedstac.replica_dataset (state, priority DESC, n);
CREATE INDEX replica_dataset_lineage ON fedstac.replica_dataset (lineage);
CREATE INDEX replica_dataset_rule ON fedstac.replica_dataset (rule) INCLUDE (size);

CREATE TABLE fedstac.replica_file (
    n               bigint NOT NULL REFERENCES fedstac.replica_dataset ON DELETE CASCADE,
    asset           text NOT NULL,
    path            text NOT NULL,              -- below the folder of the tier
    tier            text NOT NULL DEFAULT '',   -- where it is, or will be written
    home            text,                       -- the tier that it was in when it was restricted
    size            bigint,
    checksum        text,                       -- multihash in hex
    state           text NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'transferring', 'verified', 'failed')),
    reason          text NOT NULL DEFAULT '',
    source          text,                       -- the host that it is, or was, fetched from
    attempts        integer NOT NULL DEFAULT 0,
    next_try        timestamptz,
    done_bytes      bigint NOT NULL DEFAULT 0,
    verified_at     timestamptz,
    claim           uuid,
    claim_until     timestamptz,
    PRIMARY KEY (n, asset)
);
CREATE INDEX replica_file_path ON fedstac.replica_file (path);
CREATE INDEX replica_file_claim ON fedstac.replica_file (claim) WHERE claim IS NOT NULL;
CREATE INDEX replica_file_open ON fedstac.replica_file (state, n) WHERE state <> 'verified';

-- A source that is not asked again for a file: what it gave had another checksum.
CREATE TABLE fedstac.replica_source_fault (
    n               bigint NOT NULL,
    asset           text NOT NULL,
    node            text NOT NULL,
    host            text NOT NULL,
    reason          text NOT NULL,
    at              timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (n, asset, node),
    FOREIGN KEY (n, asset) REFERENCES fedstac.replica_file ON DELETE CASCADE
);

-- Files that have to go out of the served tree, or to another tier. At most one of a dataset is open: a later event
-- changes its kind, and it keeps the place of the earliest event that waits for it. The origin is told of nothing from
-- that place on before the removal is done.
CREATE TABLE fedstac.replica_removal (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    n               bigint NOT NULL REFERENCES fedstac.replica_dataset ON DELETE CASCADE,
    origin          text NOT NULL,
    epoch           bigint NOT NULL,            -- of the event that it acknowledges
    pos             bigint NOT NULL,
    event_id        text NOT NULL DEFAULT '',
    kind            text NOT NULL CHECK (kind IN ('purge', 'restrict', 'tier', 'restore', 'trim')),
    state           text NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'moved', 'done')),
    reason          text NOT NULL DEFAULT '',   -- why it is wanted; after a failure, what stands in its way
    attempts        integer NOT NULL DEFAULT 0,
    next_try        timestamptz,
    at              timestamptz NOT NULL DEFAULT clock_timestamp(),
    done_at         timestamptz
);
CREATE UNIQUE INDEX replica_removal_open ON fedstac.replica_removal (n) WHERE state <> 'done';
CREATE INDEX replica_removal_place ON fedstac.replica_removal (origin, epoch, pos) WHERE state <> 'done';
CREATE INDEX replica_removal_done ON fedstac.replica_removal (done_at) WHERE state = 'done';

-- Files of a dataset that are none of it any more: replaced by a document without them, or under another name.
CREATE TABLE fedstac.replica_leftover (
    n               bigint NOT NULL REFERENCES fedstac.replica_dataset ON DELETE CASCADE,
    tier            text NOT NULL,
    path            text NOT NULL,
    PRIMARY KEY (n, tier, path)
);

-- What the origin is to be told of a dataset here: that it is a replica, or is none any more. The newest counts.
CREATE TABLE fedstac.replica_announcement (
    n               bigint PRIMARY KEY REFERENCES fedstac.replica_dataset ON DELETE CASCADE,
    kind            text NOT NULL CHECK (kind IN ('add', 'remove')),
    state           text NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'sent', 'done', 'parked')),
    reason          text NOT NULL DEFAULT '',
    request         uuid,
    attempts        integer NOT NULL DEFAULT 0,
    next_try        timestamptz,
    claim           uuid,
    claim_until     timestamptz,
    at              timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated         timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX replica_announcement_open ON fedstac.replica_announcement (state, next_try) WHERE state <> 'done';

GRANT SELECT, INSERT, UPDATE, DELETE ON fedstac.replica_dataset, fedstac.replica_file, fedstac.replica_source_fault,
    fedstac.replica_removal, fedstac.replica_leftover, fedstac.replica_announcement TO fedstac_writer;
GRANT SELECT ON fedstac.replica_dataset, fedstac.replica_file, fedstac.replica_source_fault, fedstac.replica_removal,
    fedstac.replica_leftover, fedstac.replica_announcement TO fedstac_reader;
