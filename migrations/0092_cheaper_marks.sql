-- Who begins a deletion says what its parts come to (0088); nothing is summed up again where that holds. What this
-- transaction wrote itself nobody else can change before it ends: it needs no lock.
CREATE OR REPLACE FUNCTION fedstac.sum_up_parts() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    changed uuid[];
BEGIN
    CASE TG_OP
        WHEN 'INSERT' THEN
            SELECT array_agg(s.deletion) INTO changed
            FROM (SELECT n.deletion, bool_or(n.required AND n.state IN ('pending', 'failed')) AS has_open,
                         bool_or(n.owns_identifier) AS has_owner, bool_or(n.state = 'failed') AS has_failed,
                         min(n.due) FILTER (WHERE n.state IN ('pending', 'failed')) AS late_after
                  FROM new_parts n GROUP BY n.deletion) s
            JOIN fedstac.deletion d ON d.id = s.deletion
            WHERE d.xmin <> pg_current_xact_id()::xid
               OR (d.is_blocked, d.has_failed, d.late_after) IS DISTINCT FROM
                  (s.has_open OR d.identifiers <> '{}' AND NOT s.has_owner, s.has_failed, s.late_after);
        WHEN 'DELETE' THEN
            SELECT array_agg(DISTINCT o.deletion) INTO changed FROM old_parts o;
        ELSE  -- a reminder changes nothing here
            SELECT array_agg(DISTINCT c.deletion) INTO changed FROM (
                SELECT deletion, name, required, owns_identifier, state, due FROM new_parts
                EXCEPT SELECT deletion, name, required, owns_identifier, state, due FROM old_parts) c;
    END CASE;
    IF changed IS NOT NULL THEN
        PERFORM fedstac.sum_up_deletions(changed);
    END IF;
    RETURN NULL;
END $$;

-- Who ends a deletion forgets its reminders in the same transaction; before, the manager looked for those of all that are
-- open.
UPDATE fedstac.deletion_dependency p SET remind_next = NULL, alerted_at = coalesce(p.alerted_at, p.due)
FROM fedstac.deletion d
WHERE d.id = p.deletion AND d.state <> 'open' AND p.state IN ('pending', 'failed') AND p.remind_next IS NOT NULL;

-- PostGIS counts each sampled geometry in every cell of a histogram that it covers. Footprints of models cover the globe:
-- 30 000 of them took ANALYZE 4 to 13 s of processor time, again after each tenth of new datasets. A coarse histogram
-- says the same of them and takes a tenth.
CREATE FUNCTION fedstac.tune_partition(of_collection text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    leaf regclass;
BEGIN
    SELECT a.attrelid INTO leaf
    FROM pgstac.collections c JOIN pg_attribute a ON a.attrelid = to_regclass('pgstac._items_' || c.key)
    WHERE c.id = of_collection AND a.attname = 'geometry' AND a.attstattarget IS DISTINCT FROM 10;
    IF leaf IS NOT NULL THEN
        EXECUTE format('ALTER TABLE %s ALTER COLUMN geometry SET STATISTICS 10', leaf);
    END IF;
END $$;
REVOKE ALL ON FUNCTION fedstac.tune_partition(text) FROM public;
GRANT EXECUTE ON FUNCTION fedstac.tune_partition(text) TO fedstac_writer;
SELECT count(fedstac.tune_partition(id)) FROM pgstac.collections;
