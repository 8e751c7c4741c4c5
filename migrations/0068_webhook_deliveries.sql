-- Subscriptions that are sent to a webhook: what their receiver agreed to, and when they are tried again.

ALTER TABLE fedstac.subscription
    ADD COLUMN agreed_url   text,                       -- the receiver there agreed to get events
    ADD COLUMN allowed_rate integer,                    -- requests a minute that it takes; null: any number
    ADD COLUMN wait_until   timestamptz,                -- nothing is sent before
    ADD COLUMN waits        integer NOT NULL DEFAULT 0, -- in a row: the next one is longer
    ADD COLUMN is_slow      boolean NOT NULL DEFAULT false; -- it gets its turn among those that are slow or fail
