-- Tombstones are listed by time, the newest first.
CREATE INDEX record_tombstones ON fedstac.record (updated, collection, id) WHERE state IN ('deleted', 'purged');
