-- Only conflicts park an announcement; `attempts` spaces them out, whatever stood in the way.
ALTER TABLE fedstac.replica_announcement ADD COLUMN IF NOT EXISTS conflicts integer NOT NULL DEFAULT 0;
