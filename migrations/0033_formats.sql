-- Following a topic in ESGF's format: events that came already, and patches that came before the item they are for.
CREATE TABLE fedstac.esgf_event (
    consumer    text NOT NULL,
    origin      text NOT NULL,
    sameness    text NOT NULL,                  -- of the event's id and content
    pos         bigint NOT NULL,                -- how many messages were read with this one
    PRIMARY KEY (consumer, origin, sameness)
);
CREATE INDEX esgf_event_pos ON fedstac.esgf_event (consumer, origin, pos);

CREATE TABLE fedstac.esgf_waiting (
    consumer    text NOT NULL,
    origin      text NOT NULL,
    subject     text NOT NULL,
    sameness    text NOT NULL,                  -- as above; its place in the topic where it has no id
    pos         bigint NOT NULL,
    event       text COMPRESSION lz4 NOT NULL,
    PRIMARY KEY (consumer, origin, subject, sameness)
);
GRANT SELECT, INSERT, DELETE ON fedstac.esgf_event, fedstac.esgf_waiting TO fedstac_writer;
