-- Who is told what. A destination is a mailbox or a webhook of somebody's; the operators' own belong to nobody ('').
CREATE TABLE fedstac.destination (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    owner       text NOT NULL,                  -- as in request.submitter and record.publisher
    address     text NOT NULL,                  -- mailto:…, https://…, slack+https://…
    topics      text[] NOT NULL,                -- told without being asked each time; empty: only where a request names it
    secret      bytea NOT NULL,                 -- signs webhooks; the confirmation code follows from it
    confirmed   timestamptz,
    created     timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (owner, address)
);
CREATE INDEX destination_of_requests ON fedstac.destination (owner) WHERE 'request' = ANY (topics);

-- Who waits for which request; the row goes when the request is final and the notification is written. No foreign key
-- to the request: a wish is stored before the request that it belongs to, and one that never came is swept out.
CREATE TABLE fedstac.awaited (
    request     uuid NOT NULL,
    destination uuid NOT NULL REFERENCES fedstac.destination (id) ON DELETE CASCADE,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (request, destination)
);

-- A message to one destination: a digest, which grows until somebody takes it up for delivery.
CREATE TABLE fedstac.notification (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),     -- the receiver's key against doubles: it never changes
    destination uuid NOT NULL REFERENCES fedstac.destination (id) ON DELETE CASCADE,
    topic       text NOT NULL CHECK (topic IN ('request', 'dataset', 'alert', 'confirm', 'test')),
    about       text[] NOT NULL,                -- what it tells of: requests, feed positions, items, events of nodes
    due         timestamptz NOT NULL,           -- not before; while somebody delivers it, when that counts as lost
    attempts    integer NOT NULL DEFAULT 0,
    taken       timestamptz,                    -- first attempt: its content is fixed from here on
    finished    timestamptz,
    outcome     text CHECK (outcome IN ('delivered', 'given up')),
    CHECK ((finished IS NULL) = (outcome IS NULL)),
    CHECK ((attempts = 0) = (taken IS NULL))
);
CREATE UNIQUE INDEX notification_open ON fedstac.notification (destination, topic) WHERE taken IS NULL;
CREATE INDEX notification_due ON fedstac.notification (due) WHERE finished IS NULL;
CREATE INDEX notification_rate ON fedstac.notification (destination, taken) WHERE taken IS NOT NULL;

-- Confirmations that somebody asked for: the limit must outlive destinations that are removed again.
CREATE TABLE fedstac.confirmation (
    owner       text NOT NULL,
    at          timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX confirmation_owner ON fedstac.confirmation (owner, at);

-- What operators were alerted of already.
CREATE TABLE fedstac.alerted (
    about       text PRIMARY KEY,
    at          timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX request_item_failed ON fedstac.request_item (id) WHERE status = 'failed';

-- Through which position of the feed publishers were told. Begins at what is there now.
CREATE TABLE fedstac.told (
    one         boolean PRIMARY KEY DEFAULT true CHECK (one),
    pos         bigint NOT NULL
);
INSERT INTO fedstac.told (pos) SELECT coalesce(max(pos), 0) FROM fedstac.feed;
INSERT INTO fedstac.alerted (about)
    SELECT 'item:' || id FROM fedstac.request_item WHERE status = 'failed'
    UNION ALL SELECT 'event:' || node || ' ' || event_id FROM fedstac.node_exception;

-- Requests of submitters who want to be told of all of theirs: in the transaction that accepts them, whatever route
-- they came by. One look at a small index a statement.
CREATE FUNCTION fedstac.await_requests() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO fedstac.awaited (request, destination)
    SELECT r.id, d.id FROM accepted r JOIN fedstac.destination d ON d.owner = r.submitter
    WHERE 'request' = ANY (d.topics) AND d.confirmed IS NOT NULL
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER request_awaited AFTER INSERT ON fedstac.request REFERENCING NEW TABLE AS accepted
    FOR EACH STATEMENT EXECUTE FUNCTION fedstac.await_requests();

GRANT SELECT, INSERT, UPDATE, DELETE ON fedstac.destination, fedstac.awaited, fedstac.notification, fedstac.confirmation,
    fedstac.alerted TO fedstac_writer;
GRANT SELECT, UPDATE ON fedstac.told TO fedstac_writer;
