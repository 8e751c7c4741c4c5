-- Sinks: brokers and webhooks that get the whole log. What they did not take, what they get again, and troubles of which
-- operators are told.

-- A place here is a hint: the log of a broker says itself where it ends. Of a webhook, which keeps no log, it is the truth.
CREATE TABLE fedstac.sink (
    name            text PRIMARY KEY,
    address         text NOT NULL,              -- never with a secret in it
    format          text NOT NULL,
    key_template    text NOT NULL DEFAULT '',   -- '': the key of the format
    required        boolean NOT NULL,           -- what it has not got is kept
    private         boolean NOT NULL,           -- it may lead to a private address: the operator of the machine named it
    secret          bytea NOT NULL,             -- signs webhooks
    starts_after    bigint NOT NULL,            -- it gets nothing from here back
    epoch           bigint NOT NULL,
    pos             bigint NOT NULL,            -- everything through here was sent, or is in dead_letter
    previous_pos    bigint NOT NULL,            -- of the last event that was sent, or the place that an operator sought
    identity        text NOT NULL DEFAULT '',   -- of the broker's log, as it was when the place was stored
    partitions      text NOT NULL DEFAULT '{}', -- JSON: partition → [offset, cursor] of its end then
    sent            bigint NOT NULL DEFAULT 0,
    sent_at         timestamptz,
    paused_reason   text,
    paused_at       timestamptz,
    lapsed_at       timestamptz,                -- it was behind for too long: nothing is kept for it until it is sought anew
    errors          bigint NOT NULL DEFAULT 0,
    failing_since   timestamptz,
    last_error      text,
    version         integer NOT NULL DEFAULT 0, -- an operator's change counts it up; the relay begins anew
    created         timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK ((paused_reason IS NULL) = (paused_at IS NULL))
);

-- Events that a sink refused for ever. The event is kept, whatever becomes of the log.
CREATE TABLE fedstac.dead_letter (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sink            text NOT NULL REFERENCES fedstac.sink (name) ON DELETE CASCADE,
    epoch           bigint NOT NULL,
    pos             bigint NOT NULL,
    event_id        text NOT NULL,
    key             text NOT NULL,
    collection      text NOT NULL,
    dataset         text,
    seq             bigint NOT NULL,
    type            text NOT NULL,
    reason          text NOT NULL,
    attempts        integer NOT NULL,
    event           text COMPRESSION lz4 NOT NULL,
    redrive_at      timestamptz,                -- an operator wants it to be sent again
    at              timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (sink, epoch, pos)
);
CREATE INDEX dead_letter_redrive ON fedstac.dead_letter (sink, id) WHERE redrive_at IS NOT NULL;

-- Stretches of the log that a sink gets once more, as redrives: holes that an audit found, or what an operator sought.
CREATE TABLE fedstac.sink_resend (
    sink            text NOT NULL REFERENCES fedstac.sink (name) ON DELETE CASCADE,
    after           bigint NOT NULL,            -- moves on while it is worked on
    through         bigint NOT NULL,
    PRIMARY KEY (sink, after),
    CHECK (after < through)
);

-- What ails the node and needs an operator; the notifier tells of each row once, to the addresses of FEDSTAC_ALERTS.
CREATE TABLE fedstac.trouble (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind            text NOT NULL,              -- sink | dead-letter | …
    place           text NOT NULL,              -- the sink, the consumer, …
    what            text NOT NULL,
    detail          text NOT NULL,
    told            boolean NOT NULL DEFAULT false,
    at              timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX trouble_untold ON fedstac.trouble (id) WHERE NOT told;

GRANT SELECT, INSERT, UPDATE, DELETE ON fedstac.sink, fedstac.dead_letter, fedstac.sink_resend, fedstac.trouble
    TO fedstac_writer;
-- The sequencer's housekeeping keeps what required sinks have not got, and lets those lapse that are dead.
GRANT SELECT (name, required, epoch, pos, starts_after, sent_at, paused_reason, paused_at, lapsed_at, version),
      UPDATE (paused_reason, paused_at, lapsed_at, version) ON fedstac.sink TO fedstac_sequencer;
GRANT INSERT ON fedstac.trouble TO fedstac_sequencer;
GRANT SELECT (name, format, required, epoch, pos, sent, sent_at, paused_at, lapsed_at, failing_since, created)
    ON fedstac.sink TO fedstac_reader;
