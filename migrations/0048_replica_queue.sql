-- Only conflicts park an announcement; `attempts` spaces them out, whatever stood in the way.
ALTER TABLE fedstac.replica_announcement ADD COLUMN IF NOT EXISTS conflicts integer NOT NULL DEFAULT 0;

-- The files that would come from a host that is away, and the datasets to be placed, however many wait.
CREATE INDEX IF NOT EXISTS replica_file_source ON fedstac.replica_file (source, n)
    WHERE state = 'queued' AND href IS NOT NULL;
CREATE INDEX IF NOT EXISTS replica_dataset_unplaced ON fedstac.replica_dataset (priority DESC, turn NULLS FIRST, n)
    WHERE lane IS NULL AND state IN ('queued', 'transferring');
CREATE INDEX IF NOT EXISTS replica_dataset_waiting
    ON fedstac.replica_dataset ((coalesce(until, '-infinity'::timestamptz))) WHERE state = 'waiting';
