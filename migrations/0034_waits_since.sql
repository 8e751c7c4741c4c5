-- Since when the log waits for a sink: what is older than that waits since then. A sink that was added, sought or filled
-- again has its time to get it.
ALTER TABLE fedstac.sink ADD COLUMN waits_since timestamptz NOT NULL DEFAULT clock_timestamp();
GRANT SELECT (waits_since) ON fedstac.sink TO fedstac_sequencer;
