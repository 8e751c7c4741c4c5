-- How the background parts of each process stand, as the process itself reports while it lives. Nothing of it has to
-- survive a crash, so it costs no WAL.
CREATE UNLOGGED TABLE fedstac.part (
    process     text NOT NULL,                  -- host, process id, and something random
    name        text NOT NULL,                  -- publisher, sequencer, notifier, follower, …
    wanted      integer NOT NULL,
    running     integer NOT NULL,
    restarts    integer NOT NULL,
    trouble     text,                           -- what ails it now, in one line
    seen        timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (process, name)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON fedstac.part TO fedstac_writer, fedstac_sequencer;
-- The sequencer's process asks, too, whether the database is as new as it is.
GRANT SELECT ON fedstac.migration TO fedstac_sequencer;
