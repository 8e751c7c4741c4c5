-- Which migrations ran is the owner's to say.
REVOKE INSERT, UPDATE, DELETE ON fedstac.migration FROM fedstac_writer;
-- The sequencer's housekeeping lets old keys go.
GRANT SELECT, DELETE ON fedstac.idempotency TO fedstac_sequencer;
