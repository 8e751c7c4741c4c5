-- Searches leave retracted datasets out, and count them out of the tally.
CREATE INDEX record_retracted ON fedstac.record (collection, id) WHERE state = 'retracted';
