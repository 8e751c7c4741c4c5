-- The nodes that have files of a dataset, its own and those of replicas, are a property of its search copy: filters name
-- them and facets count them (docs/search.md, "Counts"). Those that fit into 480 bytes: a longer value has no code.
CREATE FUNCTION fedstac.nodes_of(document jsonb, replicas jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_agg(node ORDER BY node COLLATE "C") FROM (
        SELECT node, sum(octet_length(to_jsonb(node)::text) + 2) OVER (ORDER BY node COLLATE "C") AS bytes FROM (
            SELECT value->>'alternate:name' AS node FROM jsonb_each(document->'assets')
            WHERE jsonb_typeof(value->'alternate:name') = 'string'
            UNION SELECT jsonb_object_keys(coalesce(replicas, '{}'))) named) sized
    WHERE bytes <= 480
$$;

-- fill_facets codes what the search copies have. What was stored before this, and what a version before writes, lacks
-- the nodes there.
ALTER FUNCTION fedstac.fill_facets(text[], text[]) RENAME TO fill_codes;
CREATE FUNCTION fedstac.fill_facets(collections text[], ids text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM fedstac.lineage WHERE key IN (
        SELECT r.lineage FROM unnest(collections, ids) d (collection, id)
        JOIN fedstac.record r ON r.collection = d.collection AND r.id = d.id) ORDER BY key FOR UPDATE;
    UPDATE pgstac.items i SET content = jsonb_set(i.content, '{properties,alternate:name}', n.nodes)
    FROM (SELECT r.collection, r.id, fedstac.nodes_of(r.document::jsonb, r.replicas::jsonb) AS nodes
          FROM unnest(collections, ids) d (collection, id)
          JOIN fedstac.record r ON r.collection = d.collection AND r.id = d.id) n
    WHERE i.collection = n.collection AND i.id = n.id AND n.nodes IS NOT NULL
      AND i.content->'properties'->'alternate:name' IS DISTINCT FROM n.nodes;
    PERFORM fedstac.fill_codes(collections, ids);
END $$;
REVOKE ALL ON FUNCTION fedstac.fill_facets(text[], text[]) FROM public;
GRANT EXECUTE ON FUNCTION fedstac.nodes_of(jsonb, jsonb) TO fedstac_writer;
