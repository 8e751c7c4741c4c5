-- Several consumers share one database: each has its own place in an origin's feed, its own parked events and its own
-- lock. The tables `cursor` and `parked` stay for the release before, which goes on with them; nothing else reads them.
CREATE TABLE fedstac.consumer_cursor (
    consumer    text NOT NULL,                  -- index, or the name of another role
    origin      text NOT NULL,
    epoch       bigint NOT NULL,
    pos         bigint NOT NULL,
    snapshot    text,                           -- set while a snapshot is being taken: the page to go on with
    deaths      integer NOT NULL DEFAULT 0,     -- processes that began with the page after this place and did not end it
    updated     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, origin)
);
INSERT INTO fedstac.consumer_cursor (consumer, origin, epoch, pos, snapshot, updated)
    SELECT 'index', origin, epoch, pos, snapshot, updated FROM fedstac.cursor;

CREATE TABLE fedstac.parked_event (
    consumer    text NOT NULL,
    origin      text NOT NULL,
    subject     text NOT NULL,
    event_id    text NOT NULL,
    pos         bigint NOT NULL,
    epoch       bigint NOT NULL DEFAULT 0,
    seq         bigint NOT NULL DEFAULT 0,
    detail      text NOT NULL,
    event       text COMPRESSION lz4 NOT NULL,
    at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, origin, subject)
);
INSERT INTO fedstac.parked_event (consumer, origin, subject, event_id, pos, epoch, seq, detail, event, at)
    SELECT 'index', origin, subject, event_id, pos, epoch, seq, detail, event, at FROM fedstac.parked;

-- Attempts at single events, each counted before it begins. Only a consumer that follows processes that died writes here.
CREATE TABLE fedstac.event_attempt (
    consumer    text NOT NULL,
    origin      text NOT NULL,
    event_id    text NOT NULL,
    attempts    integer NOT NULL DEFAULT 1,
    PRIMARY KEY (consumer, origin, event_id)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON fedstac.consumer_cursor, fedstac.parked_event, fedstac.event_attempt
    TO fedstac_writer;
