-- Subscriptions: a cursor in the log that the server keeps, with a filter; what was not taken yet, and what never was.

CREATE TABLE fedstac.subscription (
    name            text PRIMARY KEY,
    owner           text NOT NULL,              -- who made it, and gets what they may read
    roles           text[] NOT NULL,            -- of the owner when it was last put
    identity        text,                       -- packed, of the owner then; null: of no identity provider
    delivery        text NOT NULL CHECK (delivery IN ('pull', 'webhook')),
    url             text,
    private         boolean NOT NULL DEFAULT false, -- it may lead to a private address: the operator allows them
    secret          bytea NOT NULL,             -- signs what a webhook gets
    format          text NOT NULL,
    key_template    text NOT NULL DEFAULT '',
    filter          text NOT NULL,              -- JSON, as it was sent
    batch           integer NOT NULL,           -- events at once
    epoch           bigint NOT NULL,
    pos             bigint NOT NULL,            -- everything through here was taken, or is in subscription_event
    lease           uuid,                       -- of who has the next events now
    leased_until    timestamptz,
    leased_epoch    bigint,
    leased_through  bigint,                     -- the last position that the lease gave out
    paused_reason   text,
    ended_reason    text,                       -- it gets nothing any more
    delivered       bigint NOT NULL DEFAULT 0,
    delivered_at    timestamptz,
    errors          bigint NOT NULL DEFAULT 0,
    failing_since   timestamptz,
    last_error      text,
    version         integer NOT NULL DEFAULT 0, -- whoever delivers begins anew when it counts up
    created         timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated         timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK ((delivery = 'webhook') = (url IS NOT NULL)),
    CHECK ((lease IS NULL) = (leased_until IS NULL) AND (lease IS NULL) = (leased_through IS NULL)
           AND (lease IS NULL) = (leased_epoch IS NULL))
);
CREATE INDEX subscription_owner ON fedstac.subscription (owner);

-- Events that the cursor of a subscription has passed and that it has not taken. They are read in the log, whose text a
-- deletion redacts: nothing of them is copied here. The first of a dataset is given again at retry_at, and the others
-- wait behind it. Once dead, it waits for somebody who wants it again, and nothing waits behind it.
CREATE TABLE fedstac.subscription_event (
    id              bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    subscription    text NOT NULL REFERENCES fedstac.subscription (name) ON DELETE CASCADE ON UPDATE CASCADE,
    epoch           bigint NOT NULL,
    pos             bigint NOT NULL,
    event_id        text NOT NULL,              -- in the log
    key             text NOT NULL,              -- of the lineage
    collection      text NOT NULL,
    dataset         text,
    type            text NOT NULL,
    attempts        integer NOT NULL,
    reason          text NOT NULL,
    retry_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    lease           uuid,                       -- it is given out with the lease of this name
    dead_at         timestamptz,
    at              timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (subscription, pos)
);
CREATE INDEX subscription_event_waiting ON fedstac.subscription_event (subscription, collection, dataset, pos)
    WHERE dead_at IS NULL;

GRANT SELECT, INSERT, UPDATE, DELETE ON fedstac.subscription, fedstac.subscription_event TO fedstac_writer;
GRANT SELECT (name, delivery, format, epoch, pos, delivered, delivered_at, paused_reason, ended_reason, failing_since,
              created) ON fedstac.subscription TO fedstac_reader;

-- Who is erased follows nothing any more.
CREATE FUNCTION fedstac.end_subscriptions() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM fedstac.subscription WHERE owner = 'person:' || OLD.pseudonym;
    RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION fedstac.end_subscriptions() FROM public;
CREATE TRIGGER person_subscriptions AFTER DELETE ON fedstac.person
    FOR EACH ROW EXECUTE FUNCTION fedstac.end_subscriptions();
