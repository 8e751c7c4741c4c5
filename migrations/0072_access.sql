-- Access levels: who may have a dataset at all (docs/services.md, Controlled and private datasets).

ALTER TABLE fedstac.record ADD COLUMN access text NOT NULL DEFAULT 'open';  -- also of a tombstone
ALTER TABLE fedstac.record ADD CONSTRAINT record_access_check
    CHECK (access IN ('open', 'controlled', 'private') AND NOT (latest AND access = 'private')) NOT VALID;
ALTER TABLE fedstac.record VALIDATE CONSTRAINT record_access_check;

-- Private datasets are in no search. Whoever may read them has a list of their own.
CREATE INDEX record_private ON fedstac.record (collection, id) WHERE access = 'private';
