-- An item is given up for attempts of its own. `attempts` counts the times that it was tried alone without a result.
-- `trying` is the claim under which it is being tried; it stands before the attempt begins, so that a worker's death
-- leaves the blame with the item that was tried, and with no other.
ALTER TABLE fedstac.request_item ADD COLUMN attempts smallint NOT NULL DEFAULT 0, ADD COLUMN trying uuid;

-- The database session of the worker that holds the claim: a claim ends when its session does.
ALTER TABLE fedstac.shard ADD COLUMN backend integer, ADD COLUMN backend_start timestamptz;
COMMENT ON COLUMN fedstac.shard.attempts IS
    'claims in a row whose workers died; batches become smaller by it, and no item fails for it';
