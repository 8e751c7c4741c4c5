-- A dataset that was marked by an earlier release gets its deletion, as a mark of today in a project without rules has it.

CREATE FUNCTION pg_temp.identifiers_of(document jsonb) RETURNS text[] LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(array_agg(DISTINCT left(value, 2000) ORDER BY left(value, 2000)), '{}') FROM (
        SELECT p.value #>> '{}' AS value FROM jsonb_each(document -> 'properties') p
        WHERE jsonb_typeof(p.value) = 'string' AND lower(regexp_replace(p.key, '^.*:', '')) IN ('pid', 'doi')
          AND p.value #>> '{}' ~ '\S'
        UNION ALL
        SELECT l ->> 'href' FROM jsonb_array_elements(document -> 'links') l
        WHERE l ->> 'rel' = 'cite-as' AND l ->> 'href' ~* '^https?://((dx\.)?doi\.org|hdl\.handle\.net)/\S+$') i
$$;

WITH marked AS (
    SELECT r.collection, r.id, r.updated, r.publisher, r.document::jsonb AS document, m.event_id, m.event
    FROM fedstac.record r
    LEFT JOIN LATERAL (
        SELECT o.event_id, o.event::jsonb AS event FROM fedstac.outbox o
        WHERE o.key = r.lineage AND o.dataset = r.id AND o.type = 'org.fedstac.dataset.marked.v1'
        ORDER BY o.id DESC LIMIT 1) m ON true
    WHERE r.state = 'marked' AND r.origin = (SELECT origin FROM fedstac.feed_state)
      AND NOT EXISTS (SELECT FROM fedstac.deletion d
                      WHERE d.collection = r.collection AND d.dataset = r.id AND d.state = 'open')
), entry AS (
    INSERT INTO fedstac.deletion (id, collection, dataset, event_id, reason, actor, marked_at, grace_until, automatic,
                                  configuration, identifiers, institution)
    SELECT gen_random_uuid(), collection, id, coalesce(event_id, gen_random_uuid()), event #>> '{data,reason}',
           coalesce(event #>> '{data,actor}', publisher), updated, updated + interval '30 days', false, 0,
           pg_temp.identifiers_of(document),
           (SELECT value FROM jsonb_each_text(document -> 'properties') WHERE key LIKE '%:institution_id' LIMIT 1)
    FROM marked RETURNING id, identifiers
)
INSERT INTO fedstac.deletion_dependency (deletion, name, required, owns_identifier, due, remind_next)
SELECT id, 'identifier', true, true, now() + interval '7 days', now() + interval '7 days'
FROM entry WHERE identifiers <> '{}';
