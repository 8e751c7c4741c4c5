-- A grant begins and ends without a change of a dataset. Subscriptions of whoever has it get an event for each dataset
-- that enters or leaves by that (docs/services.md, "What you get"). A turn is one beginning or end that is still to be
-- told: some datasets at a time, in the order of their ids.
CREATE TABLE fedstac.grant_turn (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    grant_id    uuid NOT NULL REFERENCES fedstac.access_grant,
    begins      boolean NOT NULL,
    due         timestamptz NOT NULL,           -- not before; turns take turns by it
    place       text NOT NULL DEFAULT '',       -- datasets through this id are told
    told        bigint NOT NULL DEFAULT 0,      -- events so far
    UNIQUE (grant_id, begins)
);
CREATE INDEX grant_turn_due ON fedstac.grant_turn (due);
GRANT SELECT, INSERT, UPDATE, DELETE ON fedstac.grant_turn TO fedstac_writer;
GRANT SELECT ON fedstac.grant_turn TO fedstac_reader;

-- Whether it was noted that a grant ran out. Of what ran out before this migration nobody is told.
ALTER TABLE fedstac.access_grant ADD COLUMN has_expired boolean NOT NULL DEFAULT false;
UPDATE fedstac.access_grant SET has_expired = true WHERE closed_at IS NULL AND valid_until <= clock_timestamp();
CREATE INDEX access_grant_ending ON fedstac.access_grant (valid_until) WHERE closed_at IS NULL AND NOT has_expired;

-- The datasets of a project that are not open to everybody: a grant makes a difference for these alone.
CREATE INDEX record_restricted ON fedstac.record (collection, id) WHERE access <> 'open';

-- Note the turns of grants that are given or withdrawn, however that is done, where the subject has a subscription. What
-- begins later is noted in any case: there may be a subscription by then. A grant that closes with its dataset has none:
-- the event of the deletion tells it.
CREATE FUNCTION fedstac.note_grant_turns() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO fedstac.grant_turn (grant_id, begins, due)
            SELECT n.id, true, greatest(n.valid_from, clock_timestamp()) FROM new_grants n
            WHERE n.closed_at IS NULL AND n.valid_until > clock_timestamp()
              AND (n.valid_from > clock_timestamp()
                   OR EXISTS (SELECT FROM fedstac.subscription s WHERE s.owner = n.subject))
            ON CONFLICT DO NOTHING;
    ELSE
        INSERT INTO fedstac.grant_turn (grant_id, begins, due)
            SELECT n.id, false, clock_timestamp() FROM new_grants n JOIN old_grants o ON o.id = n.id
            WHERE n.closed_at IS NOT NULL AND o.closed_at IS NULL AND n.cause IS NULL AND NOT n.has_expired
              AND n.valid_from <= n.closed_at AND n.valid_until > n.closed_at
              AND EXISTS (SELECT FROM fedstac.subscription s WHERE s.owner = n.subject)
            ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER access_grant_given AFTER INSERT ON fedstac.access_grant
    REFERENCING NEW TABLE AS new_grants FOR EACH STATEMENT EXECUTE FUNCTION fedstac.note_grant_turns();
CREATE TRIGGER access_grant_changed AFTER UPDATE ON fedstac.access_grant
    REFERENCING OLD TABLE AS old_grants NEW TABLE AS new_grants
    FOR EACH STATEMENT EXECUTE FUNCTION fedstac.note_grant_turns();
