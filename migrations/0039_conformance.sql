-- What CQL2 asks for by its standard: casei folds case, and two properties can be compared as sets.

-- A text after CQL2's casei or accenti, or our upper or lower. casei is full case folding: casei('Straße') is 'strasse'.
CREATE OR REPLACE FUNCTION fedstac.apply_text_function(name text, value text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT CASE name
        WHEN 'casei' THEN translate(
            lower(upper(lower(value COLLATE "und-x-icu") COLLATE "und-x-icu") COLLATE "und-x-icu"), 'ς', 'σ')
        WHEN 'accenti' THEN normalize(regexp_replace(normalize(value, NFD), '[\u0300-\u036f]', '', 'g'), NFC)
        WHEN 'upper' THEN upper(value COLLATE "und-x-icu")
        WHEN 'lower' THEN lower(value COLLATE "und-x-icu")
    END
$$;

-- Two JSON values compared as sets, by an operator of CQL2 that begins with a_; what is no list is a list of one.
CREATE OR REPLACE FUNCTION fedstac.compare_sets(op text, one jsonb, other jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT CASE op
        WHEN 'a_contains' THEN coalesce(bool_or(in_other) FILTER (WHERE NOT in_one), false) = false
        WHEN 'a_containedby' THEN coalesce(bool_or(in_one) FILTER (WHERE NOT in_other), false) = false
        WHEN 'a_equals' THEN coalesce(bool_and(in_one AND in_other), true)
        WHEN 'a_overlaps' THEN coalesce(bool_or(in_one AND in_other), false)
    END
    FROM (
        SELECT bool_or(side = 1) AS in_one, bool_or(side = 2) AS in_other
        FROM (
            SELECT 1 AS side, member FROM jsonb_array_elements(
                CASE jsonb_typeof(one) WHEN 'array' THEN one ELSE jsonb_build_array(one) END) member
            UNION ALL
            SELECT 2, member FROM jsonb_array_elements(
                CASE jsonb_typeof(other) WHEN 'array' THEN other ELSE jsonb_build_array(other) END) member
        ) members
        GROUP BY member
    ) sets
$$;

-- A text as free text is compared: case folded, one space for whatever is neither a letter nor a digit, and at both ends.
CREATE OR REPLACE FUNCTION fedstac.plain(value text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT regexp_replace(
        ' ' || fedstac.apply_text_function('casei', value) || ' ', '[^[:alnum:]]+' COLLATE "und-x-icu", ' ', 'g')
$$;

-- The parts of the world that the extent of a collection names; what is no box in degrees counts as none.
CREATE OR REPLACE FUNCTION fedstac.footprint_of_collection(document jsonb) RETURNS public.geometry
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    WITH boxes AS (
        SELECT (box ->> 0)::float8 AS west, (box ->> 1)::float8 AS south,
               (box ->> (jsonb_array_length(box) / 2))::float8 AS east,
               (box ->> (jsonb_array_length(box) / 2 + 1))::float8 AS north
        FROM jsonb_path_query(document,
            'strict $.extent.spatial.bbox[*] ? ((@.size() == 4 || @.size() == 6)
             && !(exists (@[*] ? (!(@.type() == "number" && @ >= -1000000 && @ <= 1000000)))))', silent => true) box
    ), eastwards AS (
        SELECT west, south, CASE WHEN east < west THEN east + 360 ELSE east END AS east, north FROM boxes
        WHERE west BETWEEN -360 AND 360 AND east BETWEEN -360 AND 360 AND south BETWEEN -90 AND north AND north <= 90
    ), parts AS (
        SELECT -180 AS west, south, 180 AS east, north FROM eastwards WHERE east - west >= 360
        UNION ALL
        SELECT greatest(west, turn - 180) - turn, south, least(east, turn + 180) - turn, north
        FROM eastwards, unnest('{-360,0,360,720}'::integer[]) turn
        WHERE east - west < 360 AND greatest(west, turn - 180) <= least(east, turn + 180)
    )
    SELECT coalesce(public.st_collect(public.st_makeenvelope(west, south, east, north, 4326)),
                    public.st_geomfromtext('POLYGON EMPTY', 4326))
    FROM parts
$$;

-- What free text looks for in a dataset beside its facets. A dataset that a vocabulary judged has its title (unless that is
-- the id), description and keywords; another one all its texts. Null if there is nothing.
CREATE OR REPLACE FUNCTION fedstac.words_of(id text, properties jsonb, has_vocabulary boolean) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN has_vocabulary AND NOT properties ?| '{description,keywords}'
             AND starts_with(id, coalesce(properties ->> 'title', '')) THEN NULL
        ELSE jsonb_build_object('words', left(fedstac.plain(left(
            CASE WHEN has_vocabulary
                THEN concat_ws(' . ', properties ->> 'title', properties ->> 'description', properties ->> 'keywords')
                ELSE concat_ws(' . ', id, jsonb_path_query_array(properties, '$.** ? (@.type() == "string")')::text)
            END, 20000)), 20000))
    END
$$;

CREATE INDEX IF NOT EXISTS items_fedstac_words ON pgstac.items
    USING gin (to_tsvector('simple', private ->> 'words')) WHERE private IS NOT NULL;
UPDATE pgstac.items i SET private = fedstac.words_of(i.id, i.content -> 'properties', r.cv_version IS NOT NULL)
FROM fedstac.record r
WHERE r.collection = i.collection AND r.id = i.id
  AND fedstac.words_of(i.id, i.content -> 'properties', r.cv_version IS NOT NULL) IS NOT NULL;
