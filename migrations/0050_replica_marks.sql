-- A recorded file whose bytes the disk does not give is a finding of its own.
ALTER TABLE fedstac.replica_finding DROP CONSTRAINT IF EXISTS replica_finding_fault_check;
ALTER TABLE fedstac.replica_finding ADD CONSTRAINT replica_finding_fault_check CHECK (fault IN (
    'dark', 'missing', 'truncated', 'wrong', 'unreadable', 'wrongly announced', 'not announced', 'unknown'));

-- The tiers whose folder has its mark, a file that says that the disk is mounted.
CREATE TABLE IF NOT EXISTS fedstac.replica_mark (
    tier            text PRIMARY KEY,
    at              timestamptz NOT NULL DEFAULT clock_timestamp()
);
GRANT SELECT, INSERT, UPDATE, DELETE ON fedstac.replica_mark TO fedstac_writer;
GRANT SELECT ON fedstac.replica_mark TO fedstac_reader;
