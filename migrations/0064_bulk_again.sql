-- A change of many datasets of which nothing was done, because all of it was refused or failed, may be asked for again:
-- the datasets are as they were, and the preview has the same digest.
DROP INDEX fedstac.bulk_asked;
CREATE UNIQUE INDEX bulk_asked ON fedstac.bulk (submitter, digest)
    WHERE cancelled_by IS NULL AND (finished_at IS NULL OR done_count > 0);

-- Datasets that are in no search, for changes of many that a filter chooses from them.
CREATE INDEX record_hidden ON fedstac.record (collection, id) WHERE state IN ('marked', 'quarantined');
