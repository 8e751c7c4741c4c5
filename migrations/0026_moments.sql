-- Moments are read from stored values as fast as before; what a moment is stays the same.
CREATE OR REPLACE FUNCTION fedstac.moment(value jsonb) RETURNS timestamptz
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE COST 100 AS $$
DECLARE
    written text := value #>> '{}';
    part text[];
BEGIN
    IF jsonb_typeof(value) <> 'string' THEN
        RETURN NULL;
    END IF;
    -- the usual spellings in UTC, their parts in their ranges: they cannot fail; what is below takes ten times as long
    IF translate(written, '123456789', '000000000')
           IN ('0000-00-00T00:00:00Z', '0000-00-00T00:00:00.000000Z', '0000-00-00T00:00:00.000Z', '0000-00-00')
       AND written > '0001' AND substr(written, 6, 2) BETWEEN '01' AND '12'
       AND substr(written, 9, 2) BETWEEN '01' AND (CASE
           WHEN substr(written, 6, 2) = '02' THEN '28' WHEN substr(written, 6, 2) IN ('04', '06', '09', '11') THEN '30'
           ELSE '31' END)
       AND substr(written, 12, 2) < '24' AND substr(written, 15, 2) < '60'
       AND substr(written, 18, 2) < '60'
    THEN
        RETURN (CASE length(written) WHEN 10 THEN written || 'Z' ELSE written END)::timestamptz;
    END IF;
    BEGIN
        part := regexp_match(written,
            '^([0-9]{4}-[0-9]{2}-[0-9]{2})(?:[Tt ]((?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?)[0-9]*'
            '(?:[Zz]|([+-](?:[01][0-9]|2[0-3]):[0-5][0-9]))?)?$');
        -- subtracted as an interval, because a time zone of PostgreSQL ends at 15:59
        RETURN (part[1] || ' ' || coalesce(part[2], '00:00:00'))::timestamp AT TIME ZONE 'UTC'
            - coalesce(part[3], '00:00')::interval;
    EXCEPTION WHEN data_exception THEN  -- 30 February
        RETURN NULL;
    END;
END $$;
