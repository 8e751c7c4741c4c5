-- One event of a dataset is parked, the newest; what is older does not take its place, nor away.
ALTER TABLE fedstac.parked ADD COLUMN epoch bigint NOT NULL DEFAULT 0, ADD COLUMN seq bigint NOT NULL DEFAULT 0;
DELETE FROM fedstac.parked p USING fedstac.parked newer
    WHERE newer.origin = p.origin AND newer.subject = p.subject AND (newer.pos, newer.event_id) > (p.pos, p.event_id);
ALTER TABLE fedstac.parked DROP CONSTRAINT parked_pkey;
ALTER TABLE fedstac.parked ADD PRIMARY KEY (origin, subject);
