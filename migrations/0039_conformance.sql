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
