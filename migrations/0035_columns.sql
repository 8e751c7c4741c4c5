-- One narrow row of codes a dataset, for searches that processes answer from memory (docs/search.md, "Coded columns").

-- The values that datasets have of a property. Codes never change; 0 stands for a dataset without the property.
CREATE TABLE fedstac.term (
    code        integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    facet       text NOT NULL,                  -- the property
    content     jsonb NOT NULL                  -- {"properties": {property: value}}, the shape of an item's content
);
CREATE UNIQUE INDEX term_of_value ON fedstac.term (facet, md5(content::text));

CREATE TABLE fedstac.footprint (
    code        integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    geometry    public.geometry NOT NULL
);
CREATE UNIQUE INDEX footprint_of_geometry ON fedstac.footprint (md5(public.ST_AsEWKB(geometry)));
CREATE INDEX footprint_geometry ON fedstac.footprint USING gist (geometry);

-- Which place of `codes` has a property in a collection. Every dataset there has its code in that place.
CREATE TABLE fedstac.facet_slot (
    collection  text NOT NULL,
    property    text NOT NULL,
    slot        smallint NOT NULL CHECK (slot BETWEEN 0 AND 23),
    terms       integer NOT NULL DEFAULT 0,     -- that this collection brought
    PRIMARY KEY (collection, property),
    UNIQUE (collection, slot)
);
-- Properties without a place, for good: their values are too long or too many. The place they had is not used again.
CREATE TABLE fedstac.facet_lost (
    collection  text NOT NULL,
    property    text NOT NULL,
    slot        smallint,
    PRIMARY KEY (collection, property)
);

CREATE SEQUENCE fedstac.record_n;
ALTER TABLE fedstac.record ADD COLUMN n bigint;
ALTER TABLE fedstac.record ALTER COLUMN n SET DEFAULT nextval('fedstac.record_n');
ALTER SEQUENCE fedstac.record_n OWNED BY fedstac.record.n;
CREATE UNIQUE INDEX record_by_n ON fedstac.record (n);

CREATE TABLE fedstac.facet (
    n           bigint PRIMARY KEY,             -- of the record
    changed     xid8 NOT NULL DEFAULT pg_current_xact_id(),
    collection  integer NOT NULL,               -- pgstac.collections.key
    shown       smallint NOT NULL,              -- 0 not found by searches; bits: 1 published, 2 retracted, 4 latest
    starts      timestamptz NOT NULL,
    ends        timestamptz NOT NULL,
    updated     timestamptz NOT NULL,
    footprint   integer NOT NULL,
    size        bigint NOT NULL,                -- bytes of its files
    files       integer NOT NULL,
    codes       integer[] NOT NULL CHECK (cardinality(codes) = 24)
) WITH (fillfactor = 90);
CREATE INDEX facet_changed ON fedstac.facet (changed);

-- Rows of datasets that are forgotten are removed some time after they were no longer shown. Whoever last looked before
-- `through` has to load everything again.
CREATE TABLE fedstac.facet_removed (
    one         boolean PRIMARY KEY DEFAULT true CHECK (one),
    through     xid8 NOT NULL DEFAULT '0'
);
INSERT INTO fedstac.facet_removed DEFAULT VALUES;

-- What of a queued document becomes its row, worked out with `prepared`.
ALTER TABLE fedstac.request_item ADD COLUMN coded text COMPRESSION lz4;

-- A whole number of bytes; 0 for any other value.
CREATE FUNCTION fedstac.bytes_of(value jsonb) RETURNS numeric LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN jsonb_typeof(value) = 'number' AND value::text ~ '^[0-9]+$' THEN value::text::numeric ELSE 0 END
$$;

-- Bring the rows of datasets up to date with their records and search copies. fedstac's writers do this by themselves;
-- this is for what was stored before, and for what a version before writes.
CREATE FUNCTION fedstac.fill_facets(collections text[], ids text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM set_config('fedstac.columns', 'on', true);  -- this is no version before: no trigger
    PERFORM FROM fedstac.lineage WHERE key IN (
        SELECT r.lineage FROM unnest(collections, ids) d (collection, id)
        JOIN fedstac.record r ON r.collection = d.collection AND r.id = d.id) ORDER BY key FOR UPDATE;
    UPDATE fedstac.record r SET n = nextval('fedstac.record_n') FROM unnest(collections, ids) d (collection, id)
    WHERE r.collection = d.collection AND r.id = d.id AND r.n IS NULL;

    -- properties that are seen for the first time: places for those of few and short values
    PERFORM pg_advisory_xact_lock(hashtext('fedstac.facet_slot'));
    WITH seen AS (
        SELECT i.collection, p.key AS property, count(*) AS datasets, count(DISTINCT p.value) AS values,
               max(length(p.value::text)) AS longest
        FROM unnest(collections, ids) d (collection, id)
        JOIN pgstac.items i ON i.collection = d.collection AND i.id = d.id
        JOIN fedstac.record r ON r.collection = d.collection AND r.id = d.id
        CROSS JOIN LATERAL jsonb_each(i.content->'properties') p
        WHERE p.key NOT LIKE 'fedstac:%' AND regexp_replace(p.key, '^.*:', '') NOT IN (
            'abstract', 'base_id', 'citation_url', 'created', 'datetime', 'description', 'end_datetime',
            'further_info_url', 'id', 'latest', 'pid', 'retracted', 'size', 'start_datetime', 'title', 'tracking_id',
            'updated')
        GROUP BY 1, 2),
    lost AS (
        INSERT INTO fedstac.facet_lost (collection, property, slot)
        SELECT s.collection, s.property, f.slot FROM seen s
        LEFT JOIN fedstac.facet_slot f ON f.collection = s.collection AND f.property = s.property
        WHERE s.longest > 500 ON CONFLICT DO NOTHING),
    gone AS (
        DELETE FROM fedstac.facet_slot f USING seen s
        WHERE f.collection = s.collection AND f.property = s.property AND s.longest > 500),
    candidate AS (
        SELECT s.collection, s.property, row_number() OVER (
                   PARTITION BY s.collection ORDER BY s.values > 20 AND s.values > s.datasets / 2, s.datasets DESC,
                            s.values, s.property) AS rank
        FROM seen s WHERE s.longest <= 500
          AND NOT EXISTS (SELECT FROM fedstac.facet_slot f WHERE f.collection = s.collection AND f.property = s.property)
          AND NOT EXISTS (SELECT FROM fedstac.facet_lost f WHERE f.collection = s.collection AND f.property = s.property)),
    free AS (
        SELECT c.collection, p.slot, row_number() OVER (PARTITION BY c.collection ORDER BY p.slot) AS rank
        FROM (SELECT DISTINCT collection FROM candidate) c CROSS JOIN generate_series(0, 23) p (slot)
        WHERE NOT EXISTS (SELECT FROM fedstac.facet_slot f WHERE f.collection = c.collection AND f.slot = p.slot)
          AND NOT EXISTS (SELECT FROM fedstac.facet_lost f WHERE f.collection = c.collection AND f.slot = p.slot))
    INSERT INTO fedstac.facet_slot (collection, property, slot)
    SELECT collection, property, slot FROM candidate JOIN free USING (collection, rank);

    WITH value AS (
        SELECT DISTINCT i.collection, f.property, jsonb_build_object('properties', jsonb_build_object(
                   f.property, i.content->'properties'->f.property)) AS content
        FROM unnest(collections, ids) d (collection, id)
        JOIN pgstac.items i ON i.collection = d.collection AND i.id = d.id
        JOIN fedstac.facet_slot f ON f.collection = d.collection
        WHERE i.content->'properties' ? f.property),
    made AS (
        INSERT INTO fedstac.term (facet, content)
        SELECT DISTINCT property, content FROM value v
        WHERE NOT EXISTS (SELECT FROM fedstac.term t
                          WHERE t.facet = v.property AND md5(t.content::text) = md5(v.content::text))
        ORDER BY property, content ON CONFLICT DO NOTHING RETURNING facet, content)
    UPDATE fedstac.facet_slot f SET terms = f.terms + m.terms
    FROM (SELECT v.collection, v.property, count(*) AS terms FROM value v
          JOIN made ON made.facet = v.property AND made.content = v.content GROUP BY 1, 2) m
    WHERE f.collection = m.collection AND f.property = m.property;
    WITH gone AS (DELETE FROM fedstac.facet_slot f WHERE f.terms > 10000 RETURNING collection, property, slot)
    INSERT INTO fedstac.facet_lost (collection, property, slot) SELECT collection, property, slot FROM gone
    ON CONFLICT DO NOTHING;

    INSERT INTO fedstac.footprint (geometry)
    SELECT DISTINCT ON (md5(public.ST_AsEWKB(i.geometry))) i.geometry FROM unnest(collections, ids) d (collection, id)
    JOIN pgstac.items i ON i.collection = d.collection AND i.id = d.id
    WHERE NOT EXISTS (SELECT FROM fedstac.footprint f
                      WHERE md5(public.ST_AsEWKB(f.geometry)) = md5(public.ST_AsEWKB(i.geometry)))
    ORDER BY md5(public.ST_AsEWKB(i.geometry)) ON CONFLICT DO NOTHING;

    INSERT INTO fedstac.facet (n, collection, shown, starts, ends, updated, footprint, size, files, codes)
    SELECT r.n, c.key, CASE r.state WHEN 'published' THEN 1 ELSE 2 END + CASE WHEN r.latest THEN 4 ELSE 0 END,
           i.datetime, i.end_datetime, r.updated, g.code, least(a.size, 9223372036854775807), a.files, t.codes
    FROM unnest(collections, ids) d (collection, id)
    JOIN fedstac.record r ON r.collection = d.collection AND r.id = d.id
    JOIN pgstac.items i ON i.collection = d.collection AND i.id = d.id
    JOIN pgstac.collections c ON c.id = d.collection
    JOIN fedstac.footprint g ON md5(public.ST_AsEWKB(g.geometry)) = md5(public.ST_AsEWKB(i.geometry))
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(fedstac.bytes_of(value->'file:size')), 0) AS size,
               count(*) FILTER (WHERE value ? 'file:checksum' OR jsonb_typeof(value->'file:size') = 'number'
                                                       AND value->>'file:size' ~ '^[0-9]+$') AS files
        FROM jsonb_each(r.document::jsonb->'assets')
        WHERE value->>'protocol' IS DISTINCT FROM 'kerchunk') a
    CROSS JOIN LATERAL (
        SELECT array_agg(coalesce(t.code, 0) ORDER BY s.slot) AS codes
        FROM generate_series(0, 23) s (slot)
        LEFT JOIN fedstac.facet_slot f ON f.collection = d.collection AND f.slot = s.slot
                                      AND i.content->'properties' ? f.property
        LEFT JOIN fedstac.term t ON t.facet = f.property AND md5(t.content::text) = md5(jsonb_build_object(
            'properties', jsonb_build_object(f.property, i.content->'properties'->f.property))::text)) t
    WHERE r.state IN ('published', 'retracted')
    ON CONFLICT (n) DO UPDATE SET changed = pg_current_xact_id(), collection = EXCLUDED.collection,
        shown = EXCLUDED.shown, starts = EXCLUDED.starts, ends = EXCLUDED.ends, updated = EXCLUDED.updated,
        footprint = EXCLUDED.footprint, size = EXCLUDED.size, files = EXCLUDED.files, codes = EXCLUDED.codes;

    UPDATE fedstac.facet f SET shown = 0, updated = r.updated, changed = pg_current_xact_id()
    FROM unnest(collections, ids) d (collection, id)
    JOIN fedstac.record r ON r.collection = d.collection AND r.id = d.id
    WHERE f.n = r.n AND r.state NOT IN ('published', 'retracted') AND f.shown <> 0;
END $$;

-- Some of the datasets behind this one, in the order of their keys, that have no row or another one than they should;
-- returns the last it looked at, and null at the end.
CREATE FUNCTION fedstac.fill_facets_after(last_collection text, last_id text, at_once integer,
                                          OUT collection text, OUT id text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    collections text[];
    ids text[];
BEGIN
    SELECT array_agg(r.collection ORDER BY r.collection, r.id) FILTER (WHERE r.is_wrong),
           array_agg(r.id ORDER BY r.collection, r.id) FILTER (WHERE r.is_wrong),
           (array_agg(r.collection ORDER BY r.collection DESC, r.id DESC))[1],
           (array_agg(r.id ORDER BY r.collection DESC, r.id DESC))[1]
    INTO collections, ids, collection, id
    FROM (SELECT r.collection, r.id, r.n IS NULL OR CASE WHEN r.state IN ('published', 'retracted')
                     THEN f.n IS NULL OR f.updated <> r.updated OR f.shown <> CASE r.state WHEN 'published' THEN 1 ELSE 2 END
                                                                              + CASE WHEN r.latest THEN 4 ELSE 0 END
                     ELSE coalesce(f.shown, 0) <> 0 END AS is_wrong
          FROM fedstac.record r LEFT JOIN fedstac.facet f ON f.n = r.n
          WHERE (r.collection, r.id) > (last_collection, last_id) ORDER BY r.collection, r.id LIMIT at_once) r;
    IF collections IS NOT NULL THEN
        PERFORM fedstac.fill_facets(collections, ids);
    END IF;
END $$;

-- What a version before this one writes has its row at the end of the transaction. fedstac sets the parameter.
CREATE FUNCTION fedstac.follow_record() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        UPDATE fedstac.facet SET shown = 0, changed = pg_current_xact_id() WHERE n = OLD.n AND shown <> 0;
    ELSE
        PERFORM fedstac.fill_facets(ARRAY[NEW.collection], ARRAY[NEW.id]);
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER follow_record AFTER INSERT OR UPDATE OR DELETE ON fedstac.record
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (current_setting('fedstac.columns', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION fedstac.follow_record();

REVOKE ALL ON FUNCTION fedstac.fill_facets(text[], text[]), fedstac.fill_facets_after(text, text, integer),
    fedstac.follow_record() FROM public;
GRANT SELECT, INSERT ON fedstac.term, fedstac.footprint TO fedstac_writer;
GRANT SELECT, INSERT, UPDATE, DELETE ON fedstac.facet, fedstac.facet_slot TO fedstac_writer;
GRANT SELECT, INSERT ON fedstac.facet_lost TO fedstac_writer;
GRANT SELECT, UPDATE ON fedstac.facet_removed TO fedstac_writer;
GRANT SELECT ON fedstac.term, fedstac.footprint, fedstac.facet, fedstac.facet_slot, fedstac.facet_removed TO fedstac_reader;
GRANT SELECT (changed), UPDATE (changed) ON fedstac.facet TO fedstac_sequencer;  -- a restored database starts anew
GRANT USAGE ON SEQUENCE fedstac.record_n TO fedstac_writer;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA fedstac TO fedstac_writer;
