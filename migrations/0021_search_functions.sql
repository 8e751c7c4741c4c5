-- What a search needs of a stored value, whatever type the value has: a value of another type is unknown, never an error.
-- No function sets a search_path: that costs time per row, and they name nothing outside pg_catalog and fedstac.

-- A moment or a date as RFC 3339 writes it (a date starts at midnight UTC); null for every other value.
CREATE FUNCTION fedstac.moment(value jsonb) RETURNS timestamptz
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE COST 100 AS $$
DECLARE
    part text[];
BEGIN
    IF jsonb_typeof(value) <> 'string' THEN
        RETURN NULL;
    END IF;
    part := regexp_match(value #>> '{}',
        '^([0-9]{4}-[0-9]{2}-[0-9]{2})(?:[Tt ]((?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?)[0-9]*'
        '(?:[Zz]|([+-](?:[01][0-9]|2[0-3]):[0-5][0-9]))?)?$');
    -- subtracted as an interval, because a time zone of PostgreSQL ends at 15:59
    RETURN (part[1] || ' ' || coalesce(part[2], '00:00:00'))::timestamp AT TIME ZONE 'UTC'
        - coalesce(part[3], '00:00')::interval;
EXCEPTION WHEN data_exception THEN  -- 30 February
    RETURN NULL;
END $$;

-- A text after CQL2's casei or accenti, or our upper or lower. Full case mapping: casei('ß') is casei('SS').
CREATE FUNCTION fedstac.apply_text_function(name text, value text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT CASE name
        WHEN 'casei' THEN upper(lower(value COLLATE "und-x-icu") COLLATE "und-x-icu")
        WHEN 'accenti' THEN normalize(regexp_replace(normalize(value, NFD), '[\u0300-\u036f]', '', 'g'), NFC)
        WHEN 'upper' THEN upper(value COLLATE "und-x-icu")
        WHEN 'lower' THEN lower(value COLLATE "und-x-icu")
    END
$$;

-- The same for a JSON value: a text, or each text of a list; every other value stays as it is.
CREATE FUNCTION fedstac.apply_text_function(name text, value jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE COST 100 AS $$
BEGIN
    CASE jsonb_typeof(value)
        WHEN 'string' THEN
            RETURN to_jsonb(fedstac.apply_text_function(name, value #>> '{}'));
        WHEN 'array' THEN
            RETURN coalesce(
                (SELECT jsonb_agg(CASE jsonb_typeof(member)
                            WHEN 'string' THEN to_jsonb(fedstac.apply_text_function(name, member #>> '{}'))
                            ELSE member END)
                 FROM jsonb_array_elements(value) member),
                '[]'::jsonb);
        ELSE
            RETURN value;
    END CASE;
END $$;
