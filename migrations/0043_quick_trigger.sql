-- A row of codes that its writer has brought up to date already is left as it is: one look, and not a dozen statements.
CREATE OR REPLACE FUNCTION fedstac.follow_record() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        UPDATE fedstac.facet SET shown = 0, changed = pg_current_xact_id() WHERE n = OLD.n AND shown <> 0;
    ELSIF NOT EXISTS (
        SELECT FROM fedstac.record r JOIN fedstac.facet f ON f.n = r.n
        WHERE r.collection = NEW.collection AND r.id = NEW.id AND f.changed = pg_current_xact_id()
          AND f.updated = r.updated
          AND f.shown = CASE r.state WHEN 'published' THEN 1 WHEN 'retracted' THEN 2 ELSE 0 END
                        + CASE WHEN r.latest AND r.state IN ('published', 'retracted') THEN 4 ELSE 0 END) THEN
        PERFORM fedstac.fill_facets(ARRAY[NEW.collection], ARRAY[NEW.id]);
    END IF;
    RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION fedstac.follow_record() FROM public;

-- Only the trigger and `fedstac migrate` call it, and both run as the owner.
ALTER FUNCTION fedstac.fill_facets(text[], text[]) SECURITY INVOKER;
