-- What an identity provider says of an owner grows old: a webhook is sent with it for a bounded time only.
ALTER TABLE fedstac.subscription
    ADD COLUMN rights_at timestamptz NOT NULL DEFAULT clock_timestamp(); -- when its owner last put it
