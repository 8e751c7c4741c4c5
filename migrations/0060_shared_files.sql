-- The event of a deletion names files of the dataset (docs/deletion.md, "Shared files"); a purge takes them out of it.
CREATE OR REPLACE FUNCTION fedstac.redacted_event(event text) RETURNS text LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT left(event, strpos(event, ',"data":{') - 1) || ',"data":{' ||
           (SELECT string_agg(to_json(key)::text || ':' || CASE key WHEN 'cv' THEN 'null' ELSE value::text END, ','
                              ORDER BY place)
            FROM json_each(event::json -> 'data') WITH ORDINALITY member (key, value, place)
            WHERE key NOT IN ('document', 'changes', 'retraction', 'quarantine', 'reason', 'redacted',
                              'unreferenced', 'still_referenced'))
           || ',"redacted":true}}'
$$;
