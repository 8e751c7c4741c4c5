-- Rows of codes of forgotten datasets go when they were not shown for an hour: `next` says which.
ALTER TABLE fedstac.facet_removed ADD COLUMN next xid8 NOT NULL DEFAULT '0';
ALTER TABLE fedstac.facet_removed ADD COLUMN looked timestamptz NOT NULL DEFAULT now();
CREATE INDEX facet_unshown ON fedstac.facet (n) WHERE shown = 0;
GRANT SELECT (one, through), UPDATE (through) ON fedstac.facet_removed TO fedstac_sequencer;  -- a restored database
