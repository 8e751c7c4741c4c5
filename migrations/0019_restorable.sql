-- A dump restores with an empty search_path. pgstac's functions name PostGIS and each other without a schema: those that
-- tables, indexes and triggers call then fail, and their tables are missing after `pg_restore`.

-- Such functions that have no search_path of their own. One whose body names nothing beyond pg_catalog needs none: it
-- stays without, because PostgreSQL inlines it in searches.
CREATE FUNCTION fedstac.functions_without_path() RETURNS SETOF regprocedure
LANGUAGE plpgsql STABLE SET search_path = '' SET check_function_bodies = on AS $$
DECLARE
    candidate record;
BEGIN
    FOR candidate IN
        SELECT DISTINCT p.oid, l.lanname FROM pg_catalog.pg_depend d
        JOIN pg_catalog.pg_proc p ON p.oid = d.refobjid
        JOIN pg_catalog.pg_language l ON l.oid = p.prolang
        LEFT JOIN pg_catalog.pg_rewrite r ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND r.oid = d.objid
        LEFT JOIN pg_catalog.pg_class v ON v.oid = r.ev_class
        WHERE d.refclassid = 'pg_catalog.pg_proc'::regclass
          AND p.pronamespace IN ('pgstac'::regnamespace, 'fedstac'::regnamespace)
          AND (d.classid IN ('pg_catalog.pg_attrdef'::regclass, 'pg_catalog.pg_class'::regclass,
                             'pg_catalog.pg_constraint'::regclass, 'pg_catalog.pg_trigger'::regclass,
                             'pg_catalog.pg_policy'::regclass) OR v.relkind = 'm')
          AND NOT EXISTS (SELECT FROM pg_catalog.unnest(p.proconfig) setting WHERE setting LIKE 'search_path=%')
    LOOP
        IF candidate.lanname = 'sql' THEN
            BEGIN
                PERFORM pg_catalog.fmgr_sql_validator(candidate.oid);
                CONTINUE;
            EXCEPTION WHEN OTHERS THEN -- its body names something that an empty search_path does not find
            END;
        END IF;
        RETURN NEXT candidate.oid::regprocedure;
    END LOOP;
END $$;

-- `fedstac migrate` runs this every time: a newer pgstac replaces its functions, and a replaced function has no path.
CREATE FUNCTION fedstac.fix_paths() RETURNS integer
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    bare regprocedure;
    changed integer := 0;
BEGIN
    FOR bare IN SELECT f FROM fedstac.functions_without_path() f LOOP
        EXECUTE pg_catalog.format('ALTER FUNCTION %s SET search_path = pgstac, public', bare);
        changed := changed + 1;
    END LOOP;
    RETURN changed;
END $$;
REVOKE ALL ON FUNCTION fedstac.fix_paths() FROM public;
