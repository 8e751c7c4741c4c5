-- What an identity provider says of an owner grows old: a webhook is sent with it for a bounded time only.
ALTER TABLE fedstac.subscription
    ADD COLUMN rights_at timestamptz NOT NULL DEFAULT clock_timestamp(); -- when its owner last put it

-- Whose turn it is, is found without a look at the webhooks that have everything.
CREATE INDEX subscription_sending ON fedstac.subscription (epoch, pos)
    WHERE delivery = 'webhook' AND paused_reason IS NULL AND ended_reason IS NULL;
CREATE INDEX subscription_unagreed ON fedstac.subscription (name)
    WHERE delivery = 'webhook' AND paused_reason IS NULL AND ended_reason IS NULL AND agreed_url IS DISTINCT FROM url;
