-- A token of the node's own may end by itself; without a time it is valid until it is revoked.
ALTER TABLE fedstac.token ADD COLUMN expires timestamptz;
