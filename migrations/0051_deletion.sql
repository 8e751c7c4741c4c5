-- Quarantine, and the deletion manager: who must do their part before a marked dataset is deleted, and who has.

ALTER TABLE fedstac.record ADD COLUMN quarantine text;  -- JSON; also while the dataset is marked
ALTER TABLE fedstac.record DROP CONSTRAINT record_state_check;
ALTER TABLE fedstac.record ADD CONSTRAINT record_state_check
    CHECK (state IN ('published', 'retracted', 'quarantined', 'marked', 'deleted', 'purged')) NOT VALID;
ALTER TABLE fedstac.record VALIDATE CONSTRAINT record_state_check;

-- The rules of a project, each version kept: who acknowledges, the grace period, by hand or by the schedule.
CREATE TABLE fedstac.deletion_configuration (
    project     text NOT NULL,
    version     integer NOT NULL CHECK (version > 0),
    body        jsonb NOT NULL,                 -- as domain/deletion.py writes it
    actor       text NOT NULL,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (project, version)
);

-- One row a mark. It stays when it has ended, and after the dataset is purged: it then names the dataset by its id alone.
CREATE TABLE fedstac.deletion (
    id              uuid PRIMARY KEY,
    collection      text NOT NULL,
    dataset         text NOT NULL,
    event_id        uuid NOT NULL UNIQUE,       -- of the event that announced the mark: reports name it
    state           text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'unmarked', 'deleted', 'purged')),
    reason          text,
    actor           text NOT NULL,
    request         uuid,
    marked_at       timestamptz NOT NULL,
    grace_until     timestamptz NOT NULL,
    automatic       boolean NOT NULL,           -- the schedule may delete it
    configuration   integer NOT NULL,           -- version of the project's rules; 0: it has none
    identifiers     text[] NOT NULL DEFAULT '{}',
    ended_at        timestamptz,
    ended_by        text,
    CHECK ((state = 'open') = (ended_at IS NULL))
);
CREATE UNIQUE INDEX deletion_open ON fedstac.deletion (collection, dataset) WHERE state = 'open';
CREATE INDEX deletion_dataset ON fedstac.deletion (collection, dataset);
CREATE INDEX deletion_listed ON fedstac.deletion (state, marked_at DESC, id);

-- What each dependency has to do for one mark, and how far it is.
CREATE TABLE fedstac.deletion_dependency (
    deletion        uuid NOT NULL REFERENCES fedstac.deletion ON DELETE CASCADE,
    name            text NOT NULL,              -- of the node or service that reports
    required        boolean NOT NULL,
    owns_identifier boolean NOT NULL,           -- its part is the identifier: two people waive it, not one
    contact         text,
    due             timestamptz NOT NULL,       -- late after this
    state           text NOT NULL DEFAULT 'pending'
                    CHECK (state IN ('pending', 'ok', 'failed', 'nothing to do', 'waived')),
    comment         text,
    reported_at     timestamptz,
    reports         integer NOT NULL DEFAULT 0,
    reminded_at     timestamptz,
    reminders       integer NOT NULL DEFAULT 0,
    remind_next     timestamptz,                -- null: not any more
    PRIMARY KEY (deletion, name)
);
CREATE INDEX deletion_dependency_open ON fedstac.deletion_dependency (remind_next) WHERE state IN ('pending', 'failed');
CREATE INDEX deletion_dependency_name ON fedstac.deletion_dependency (name, state);

CREATE TABLE fedstac.deletion_waiver (
    deletion        uuid NOT NULL,
    name            text NOT NULL,
    actor           text NOT NULL,
    reason          text NOT NULL,
    at              timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (deletion, name, actor),
    FOREIGN KEY (deletion, name) REFERENCES fedstac.deletion_dependency ON DELETE CASCADE
);

-- Cases of quarantine: who, when, why, the correspondence, the decision.
CREATE TABLE fedstac.quarantine_case (
    id              uuid PRIMARY KEY,
    collection      text NOT NULL,
    dataset         text NOT NULL,
    event_id        uuid NOT NULL UNIQUE,
    reason          text NOT NULL,
    reference       text,                       -- the number of the case elsewhere
    contact         text,
    links           text[] NOT NULL DEFAULT '{}',
    opened_at       timestamptz NOT NULL,
    opened_by       text NOT NULL,
    decision        text,
    closed_at       timestamptz,
    closed_by       text
);
CREATE UNIQUE INDEX quarantine_open ON fedstac.quarantine_case (collection, dataset) WHERE closed_at IS NULL;
CREATE INDEX quarantine_listed ON fedstac.quarantine_case (opened_at DESC, id);

GRANT SELECT, INSERT ON fedstac.deletion_configuration, fedstac.deletion_waiver TO fedstac_writer;
GRANT SELECT, INSERT, UPDATE ON fedstac.deletion, fedstac.deletion_dependency, fedstac.quarantine_case TO fedstac_writer;
GRANT SELECT ON fedstac.deletion_configuration, fedstac.deletion, fedstac.deletion_dependency, fedstac.deletion_waiver,
    fedstac.quarantine_case TO fedstac_reader;
