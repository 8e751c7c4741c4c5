-- Finds the rows of a moment, as a rehearsal does that says whose change it would undo. An index of block ranges costs
-- a write nothing; new blocks are summarised in the background.
CREATE INDEX audit_at ON fedstac.audit USING brin (at) WITH (autosummarize = on);
