-- Searches leave retracted datasets out, and count them out of the tally.
CREATE INDEX record_retracted ON fedstac.record (collection, id) WHERE state = 'retracted';

-- The history of a dataset: the events of its lineage. By hash, which costs a write the least.
CREATE INDEX outbox_key ON fedstac.outbox USING hash (key);
