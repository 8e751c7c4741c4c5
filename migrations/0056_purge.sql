-- What a deletion hides in the log, and what a purge removes (docs/deletion.md, "What a purge removes, and what it cannot").

-- The text of an event without all that was written about its dataset. Position, ids, times, actors, state and digest
-- stay: whoever follows the log passes over it. Text is cut, not parsed into jsonb: the order of members counts.
CREATE FUNCTION fedstac.redacted_event(event text) RETURNS text LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT left(event, strpos(event, ',"data":{') - 1) || ',"data":{' ||
           (SELECT string_agg(to_json(key)::text || ':' || CASE key WHEN 'cv' THEN 'null' ELSE value::text END, ','
                              ORDER BY place)
            FROM json_each(event::json -> 'data') WITH ORDINALITY member (key, value, place)
            WHERE key NOT IN ('document', 'changes', 'retraction', 'quarantine', 'reason', 'redacted'))
           || ',"redacted":true}}'
$$;

-- Redacts the events of datasets that are deleted, all but what says so: nothing else of the log can be changed by it.
CREATE FUNCTION fedstac.redact_events(collections text[], ids text[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    redacted bigint;
BEGIN
    UPDATE fedstac.outbox o SET event = fedstac.redacted_event(o.event)
    FROM (SELECT r.lineage, r.collection, r.id FROM unnest(collections, ids) d (collection, id)
          JOIN fedstac.record r ON r.collection = d.collection AND r.id = d.id
          WHERE r.state IN ('deleted', 'purged')) gone
    WHERE o.key = gone.lineage AND o.collection = gone.collection AND o.dataset = gone.id
      AND NOT (o.event LIKE '%,"redacted":true}}')
      AND o.type NOT IN ('org.fedstac.dataset.deleted.v1', 'org.fedstac.dataset.purged.v1');
    GET DIAGNOSTICS redacted = ROW_COUNT;
    -- the event of the deletion keeps its state, and nothing says why
    UPDATE fedstac.outbox o SET event = fedstac.redacted_event(o.event)
    FROM (SELECT r.lineage, r.collection, r.id FROM unnest(collections, ids) d (collection, id)
          JOIN fedstac.record r ON r.collection = d.collection AND r.id = d.id
          WHERE r.state = 'purged') gone
    WHERE o.key = gone.lineage AND o.collection = gone.collection AND o.dataset = gone.id
      AND NOT (o.event LIKE '%,"redacted":true}}') AND o.type = 'org.fedstac.dataset.deleted.v1';
    RETURN redacted;
END $$;

-- Redacts what people wrote when they waived a part of a deletion whose dataset is purged.
CREATE FUNCTION fedstac.redact_waivers(deletions uuid[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    redacted bigint;
BEGIN
    UPDATE fedstac.deletion_waiver w SET reason = '' FROM fedstac.deletion d
    WHERE d.id = ANY (deletions) AND w.deletion = d.id AND w.reason <> ''
      AND EXISTS (SELECT FROM fedstac.record r
                  WHERE r.collection = d.collection AND r.id = d.dataset AND r.state = 'purged');
    GET DIAGNOSTICS redacted = ROW_COUNT;
    RETURN redacted;
END $$;
REVOKE ALL ON FUNCTION fedstac.redact_events(text[], text[]), fedstac.redact_waivers(uuid[]) FROM public;
GRANT EXECUTE ON FUNCTION fedstac.redact_events(text[], text[]), fedstac.redact_waivers(uuid[]) TO fedstac_writer;

-- Nobody changes what an event says but by the function above: a new epoch sets xid, and nothing else. A trigger and not
-- a grant of the column: processes of the version before ask for the right on the table while they are being replaced.
CREATE FUNCTION fedstac.keep_events() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_user <> (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = TG_RELID) THEN
        RAISE EXCEPTION 'events do not change' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER outbox_kept BEFORE UPDATE OF id, event_id, key, collection, dataset, seq, type, digest, event, at
    ON fedstac.outbox FOR EACH STATEMENT EXECUTE FUNCTION fedstac.keep_events();

-- What was deleted or purged last of a dataset: whoever keeps something beside the records looks here. Snapshots in files
-- that are older go, and so do values that nobody has any more.
CREATE TABLE fedstac.redaction (
    collection  text NOT NULL,
    dataset     text NOT NULL,
    event       bigint,                         -- of the outbox; null: another node's
    xid         xid8 NOT NULL DEFAULT pg_current_xact_id(),
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (collection, dataset)
);
CREATE INDEX redaction_event ON fedstac.redaction (event);
CREATE INDEX redaction_xid ON fedstac.redaction (xid);
GRANT SELECT, INSERT, UPDATE ON fedstac.redaction TO fedstac_writer;

-- The dictionary of values (fedstac.term) names no dataset, and many share an entry. So a purge leaves it alone, and
-- housekeeping removes the entries that no dataset has any more. Whoever writes codes holds a lock until its commit and
-- reads `version` under it: another number than before, and it forgets the codes that it knows.
CREATE TABLE fedstac.term_state (
    one         boolean PRIMARY KEY DEFAULT true CHECK (one),
    version     bigint NOT NULL DEFAULT 0,
    seen        xid8 NOT NULL DEFAULT pg_current_xact_id()  -- what was redacted before it was looked after
);
INSERT INTO fedstac.term_state DEFAULT VALUES;
GRANT SELECT ON fedstac.term_state TO fedstac_writer;

CREATE FUNCTION fedstac.hold_terms() RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtext('fedstac.term'));
    RETURN (SELECT version FROM fedstac.term_state);  -- in a snapshot of its own, after the lock
END $$;

CREATE FUNCTION fedstac.remove_terms() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
    now_seen pg_snapshot := pg_current_snapshot();
    unused integer[];
    removed bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM fedstac.term_state s
                   WHERE s.seen > pg_snapshot_xmax(now_seen)  -- restored into another cluster
                      OR EXISTS (SELECT FROM fedstac.redaction r WHERE r.xid >= s.seen)) THEN
        RETURN 0;
    END IF;
    unused := ARRAY(SELECT code FROM fedstac.term EXCEPT SELECT unnest(codes) FROM fedstac.facet);
    PERFORM pg_advisory_xact_lock(hashtext('fedstac.term'));  -- who writes codes has committed
    DELETE FROM fedstac.term t WHERE t.code = ANY (unused) AND NOT EXISTS (
        SELECT FROM fedstac.facet f
        WHERE f.changed >= pg_snapshot_xmin(now_seen) AND f.codes @> ARRAY[t.code]);
    GET DIAGNOSTICS removed = ROW_COUNT;
    UPDATE fedstac.term_state SET seen = pg_snapshot_xmin(now_seen), version = version + least(removed, 1);
    RETURN removed;
END $$;
REVOKE ALL ON FUNCTION fedstac.remove_terms() FROM public;
GRANT EXECUTE ON FUNCTION fedstac.remove_terms() TO fedstac_writer, fedstac_sequencer;

-- Final items that quote what was sent, to be found by their dataset; those that were done without a word are not here.
CREATE INDEX request_item_texts ON fedstac.request_item (dataset)
    WHERE status <> 'queued' AND (document IS NOT NULL OR detail IS NOT NULL OR findings IS NOT NULL);
CREATE INDEX bulk_dataset_texts ON fedstac.bulk_dataset (dataset) WHERE detail IS NOT NULL;
CREATE INDEX dead_letter_dataset ON fedstac.dead_letter (dataset);
CREATE INDEX node_exception_event ON fedstac.node_exception (event_id);
