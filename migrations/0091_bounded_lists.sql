-- A change that applies a full-state load lists its datasets some at a time, versions of one dataset in their order.
CREATE INDEX load_dataset_order ON fedstac.load_dataset (load, lineage, coalesce(version, -1), dataset);

-- Whose a dataset is, by its document and the vocabulary that judged it: who may read the private datasets of one
-- institution does not read past those of others. '': it names none. '*': of what was stored before, nobody said.
ALTER TABLE fedstac.record ADD COLUMN institution text NOT NULL DEFAULT '*';
CREATE INDEX record_private_of ON fedstac.record (collection, institution, id) WHERE access = 'private';
