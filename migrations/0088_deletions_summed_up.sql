-- A deletion says what its parts come to, so that lists and counts of many read no parts (docs/adr/0053). Of open ones;
-- what ended stays as it was.
ALTER TABLE fedstac.deletion
    ADD COLUMN is_blocked boolean NOT NULL DEFAULT false,   -- a required part is not done, or nobody owns its identifiers
    ADD COLUMN has_failed boolean NOT NULL DEFAULT false,   -- a part failed
    ADD COLUMN late_after timestamptz;                      -- when the first of the parts that are not done is due

-- Writes what the parts of open deletions come to. It locks them first: the parts are read as the last one left them.
CREATE FUNCTION fedstac.sum_up_deletions(deletions uuid[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM fedstac.deletion WHERE id = ANY (deletions) AND state = 'open' ORDER BY id FOR UPDATE;
    UPDATE fedstac.deletion d
    SET is_blocked = s.is_blocked, has_failed = s.has_failed, late_after = s.late_after
    FROM (SELECT o.id, coalesce(bool_or(p.required AND p.state IN ('pending', 'failed')), false)
                       OR o.identifiers <> '{}' AND NOT coalesce(bool_or(p.owns_identifier), false) AS is_blocked,
                 coalesce(bool_or(p.state = 'failed'), false) AS has_failed,
                 min(p.due) FILTER (WHERE p.state IN ('pending', 'failed')) AS late_after
          FROM fedstac.deletion o LEFT JOIN fedstac.deletion_dependency p ON p.deletion = o.id
          WHERE o.id = ANY (deletions) AND o.state = 'open' GROUP BY o.id) s
    WHERE d.id = s.id
      AND (d.is_blocked, d.has_failed, d.late_after) IS DISTINCT FROM (s.is_blocked, s.has_failed, s.late_after);
END $$;

-- A trigger, as several statements write parts, and so do processes of the release before while they are replaced.
CREATE FUNCTION fedstac.sum_up_parts() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    changed uuid[];
BEGIN
    CASE TG_OP
        WHEN 'INSERT' THEN
            SELECT array_agg(DISTINCT n.deletion) INTO changed FROM new_parts n;
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
CREATE TRIGGER part_added AFTER INSERT ON fedstac.deletion_dependency REFERENCING NEW TABLE AS new_parts
    FOR EACH STATEMENT EXECUTE FUNCTION fedstac.sum_up_parts();
CREATE TRIGGER part_changed AFTER UPDATE ON fedstac.deletion_dependency
    REFERENCING OLD TABLE AS old_parts NEW TABLE AS new_parts
    FOR EACH STATEMENT EXECUTE FUNCTION fedstac.sum_up_parts();
CREATE TRIGGER part_removed AFTER DELETE ON fedstac.deletion_dependency REFERENCING OLD TABLE AS old_parts
    FOR EACH STATEMENT EXECUTE FUNCTION fedstac.sum_up_parts();

-- Identifiers without an owner block, whatever writes them.
CREATE FUNCTION fedstac.guard_identifiers() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.is_blocked := NEW.identifiers <> '{}' AND NOT EXISTS (
            SELECT FROM fedstac.deletion_dependency p WHERE p.deletion = NEW.id AND p.owns_identifier)
        OR EXISTS (SELECT FROM fedstac.deletion_dependency p
                   WHERE p.deletion = NEW.id AND p.required AND p.state IN ('pending', 'failed'));
    RETURN NEW;
END $$;
CREATE TRIGGER deletion_begun BEFORE INSERT ON fedstac.deletion
    FOR EACH ROW WHEN (NEW.identifiers <> '{}') EXECUTE FUNCTION fedstac.guard_identifiers();
CREATE TRIGGER identifiers_changed BEFORE UPDATE OF identifiers ON fedstac.deletion
    FOR EACH ROW WHEN (NEW.state = 'open') EXECUTE FUNCTION fedstac.guard_identifiers();
