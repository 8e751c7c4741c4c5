-- Grants: who may have the files of controlled datasets, until when (docs/services.md, "Grants"). Whether one is suspended
-- follows from the state of its datasets and is not stored: OPENS in db/grants.py.

CREATE TABLE fedstac.access_grant (
    id          uuid PRIMARY KEY,               -- of version 7: pages are in the order of giving
    subject     text NOT NULL,                  -- as in the logs: person:…, or a token's name
    collection  text NOT NULL,                  -- the project
    scope       text NOT NULL CHECK (scope IN ('dataset', 'lineage', 'project')),
    target      text NOT NULL,                  -- the dataset's id, the lineage's key, or '' for the project
    valid_from  timestamptz NOT NULL,
    valid_until timestamptz NOT NULL,
    given_at    timestamptz NOT NULL,
    given_by    text NOT NULL,
    closed_at   timestamptz,
    closed_by   text,
    closed_why  text,
    cause       uuid,                           -- the event that closed it: of the deletion, or of the withdrawal
    CHECK (valid_from < valid_until),
    CHECK ((scope = 'project') = (target = '')),
    CHECK ((closed_at IS NULL) = (closed_by IS NULL) AND (closed_at IS NULL) = (closed_why IS NULL))
);
-- a check reads this index alone: one look for the dataset, one for its lineage, one for its project
CREATE UNIQUE INDEX access_grant_open ON fedstac.access_grant (subject, collection, scope, target, valid_until, valid_from)
    WHERE closed_at IS NULL;
CREATE INDEX access_grant_target ON fedstac.access_grant (collection, scope, target, id);
CREATE INDEX access_grant_subject ON fedstac.access_grant (subject, id);

-- What grants are for: the key of its events and their number. Who gives or closes grants of it waits here for others.
CREATE TABLE fedstac.grant_target (
    key         text PRIMARY KEY,
    seq         bigint NOT NULL
) WITH (fillfactor = 80);

GRANT SELECT, INSERT, UPDATE ON fedstac.access_grant, fedstac.grant_target TO fedstac_writer;
GRANT SELECT ON fedstac.access_grant TO fedstac_reader;

-- The key of the events about grants of a target.
CREATE FUNCTION fedstac.grant_key(collection text, scope text, target text) RETURNS text LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT 'grant:' || scope || ':' || CASE scope WHEN 'dataset' THEN collection || '/' || target
                                                   WHEN 'lineage' THEN target ELSE collection END
$$;

-- A UUID of version 7 (RFC 9562, 5.7): milliseconds, then random bits.
CREATE FUNCTION fedstac.new_event_id() RETURNS uuid LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT encode(set_byte(substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3 FOR 6)
                           || substring(uuid_send(gen_random_uuid()) FROM 7),
                           6, get_byte(uuid_send(gen_random_uuid()), 0) & 15 | 112), 'hex')::uuid
$$;

-- Write events about grants, numbered by target, in their order: to the outbox, in the transaction that is open.
-- data: one object for each, with collection, scope, dataset and lineage. causes: the event that it follows from, or NULL.
CREATE FUNCTION fedstac.announce_grants(event_type text, who text, data jsonb[], causes uuid[], correlation text,
                                        traceparent text)
RETURNS SETOF uuid LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    node text;
    moment text := to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
BEGIN
    SELECT origin INTO node FROM fedstac.feed_state;
    INSERT INTO fedstac.grant_target AS t (key, seq)
        SELECT d ->> 'key', count(*) FROM unnest(data) d GROUP BY 1 ORDER BY 1
        ON CONFLICT (key) DO UPDATE SET seq = t.seq + EXCLUDED.seq;
    RETURN QUERY
        WITH numbered AS (
            SELECT d, cause, n, fedstac.new_event_id() AS event_id,
                   t.seq - count(*) OVER (PARTITION BY t.key) + row_number() OVER (PARTITION BY t.key ORDER BY n) AS seq
            FROM unnest(data, causes) WITH ORDINALITY e (d, cause, n) JOIN fedstac.grant_target t ON t.key = d ->> 'key'),
        written AS (
            SELECT numbered.*, json_strip_nulls(json_build_object(
                       'specversion', '1.0', 'id', event_id, 'source', node, 'type', event_type, 'time', moment,
                       'datacontenttype', 'application/json', 'correlationid', correlation, 'causationid', cause,
                       'traceparent', traceparent,
                       'subject', concat_ws('/', d ->> 'collection', coalesce(d ->> 'dataset', d ->> 'lineage')),
                       'sequence', seq::text, 'partitionkey', d ->> 'key'))::text AS envelope,
                   (d - 'key' || jsonb_build_object('seq', seq, 'actor', who))::text AS body
            FROM numbered),
        stored AS (
            INSERT INTO fedstac.outbox (event_id, key, collection, seq, type, digest, event)
            SELECT event_id, d ->> 'key', d ->> 'collection', seq, event_type, sha256(convert_to(body, 'UTF8')),
                   left(envelope, -1) || ',"data":' || body || '}'
            FROM written ORDER BY n RETURNING outbox.event_id)
        SELECT written.event_id FROM written JOIN stored ON stored.event_id = written.event_id ORDER BY written.n;
END $$;

-- What belongs to a person here, as migration 0061 has it, and their grants: those of a project, or all of them.
CREATE OR REPLACE FUNCTION fedstac.close_person(who text, project_left text, really boolean)
RETURNS TABLE (kind text, name text, project text, count bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    pseudonym_of text := substring(who FROM '^person:([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$');
BEGIN
    -- two who do this at once wait for each other, and so does whoever changes one of the groups
    PERFORM pg_advisory_xact_lock(hashtext('fedstac.person'), hashtext(who));
    PERFORM 1 FROM fedstac.own_group g
        WHERE g.name IN (SELECT own_group FROM fedstac.own_group_person WHERE principal = who)
          AND (project_left IS NULL OR g.project = project_left) ORDER BY g.name FOR UPDATE;
    RETURN QUERY
        SELECT p.part, p.own_group, g.project, 1::bigint
        FROM fedstac.own_group_person p JOIN fedstac.own_group g ON g.name = p.own_group
        WHERE p.principal = who AND (project_left IS NULL OR g.project = project_left) ORDER BY 1, 2;
    RETURN QUERY
        SELECT 'awaited', '', '', count(*) FROM fedstac.awaited a
        JOIN fedstac.destination d ON d.id = a.destination LEFT JOIN fedstac.request r ON r.id = a.request
        WHERE d.owner = who AND (project_left IS NULL OR r.collection = project_left);
    RETURN QUERY
        SELECT 'dataset', '', '', count(*) FROM fedstac.record r
        WHERE r.publisher = who AND (project_left IS NULL OR r.collection = project_left);
    RETURN QUERY
        SELECT 'grant', '', '', count(*) FROM fedstac.access_grant g
        WHERE g.subject = who AND g.closed_at IS NULL AND (project_left IS NULL OR g.collection = project_left);
    IF project_left IS NULL THEN
        RETURN QUERY SELECT 'destination', '', '', count(*) FROM fedstac.destination WHERE owner = who;
        RETURN QUERY SELECT 'message', '', '', count(*) FROM fedstac.notification n
            JOIN fedstac.destination d ON d.id = n.destination WHERE d.owner = who;
        RETURN QUERY SELECT 'session', '', '', count(*) FROM fedstac.console_session WHERE actor = who;
        RETURN QUERY SELECT 'mapping', '', '', count(*) FROM fedstac.person WHERE pseudonym = pseudonym_of::uuid;
    END IF;
    IF NOT really THEN
        RETURN;
    END IF;
    DELETE FROM fedstac.own_group_person p USING fedstac.own_group g
        WHERE p.principal = who AND g.name = p.own_group AND (project_left IS NULL OR g.project = project_left);
    DELETE FROM fedstac.awaited a USING fedstac.destination d
        WHERE d.id = a.destination AND d.owner = who
          AND (project_left IS NULL OR EXISTS (SELECT FROM fedstac.request r
                                               WHERE r.id = a.request AND r.collection = project_left));
    PERFORM fedstac.close_grants(ARRAY(
        SELECT g.id FROM fedstac.access_grant g
        WHERE g.subject = who AND g.closed_at IS NULL AND (project_left IS NULL OR g.collection = project_left)),
        'database:' || session_user, CASE WHEN project_left IS NULL THEN 'erase-person' ELSE 'leave-project' END, NULL);
    IF project_left IS NULL THEN
        DELETE FROM fedstac.destination WHERE owner = who;    -- with the messages on their way
        DELETE FROM fedstac.confirmation WHERE owner = who;
        DELETE FROM fedstac.console_session WHERE actor = who;
        DELETE FROM fedstac.person WHERE pseudonym = pseudonym_of::uuid;
    END IF;
END $$;

-- Close grants, each with an event of its own, in the transaction that is open. Return how many were open.
CREATE FUNCTION fedstac.close_grants(ids uuid[], who text, why text, correlation text)
RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    closed_ids uuid[];
    documents jsonb[];
    events uuid[];
BEGIN
    -- the targets first, in the order of their keys, as whoever gives grants of them
    INSERT INTO fedstac.grant_target AS t (key, seq)
        SELECT DISTINCT fedstac.grant_key(g.collection, g.scope, g.target), 0 FROM fedstac.access_grant g
        WHERE g.id = ANY (ids) AND g.closed_at IS NULL ORDER BY 1
        ON CONFLICT (key) DO UPDATE SET seq = t.seq;
    WITH closed AS (
        UPDATE fedstac.access_grant g SET closed_at = clock_timestamp(), closed_by = who, closed_why = why
        WHERE g.id = ANY (ids) AND g.closed_at IS NULL
        RETURNING g.*)
    SELECT array_agg(id ORDER BY id), array_agg(jsonb_build_object(
               'key', fedstac.grant_key(collection, scope, target), 'collection', collection, 'scope', scope,
               'dataset', CASE scope WHEN 'dataset' THEN target END,
               'lineage', CASE scope WHEN 'lineage' THEN substr(target, length(collection) + 2) END,
               'subject', subject, 'grant', id, 'grants', 1, 'reason', why) ORDER BY id)
    INTO closed_ids, documents FROM closed;
    IF closed_ids IS NULL THEN
        RETURN 0;
    END IF;
    events := ARRAY(SELECT fedstac.announce_grants('org.fedstac.grant.withdrawn.v1', who, documents,
                                                   array_fill(NULL::uuid, ARRAY[cardinality(closed_ids)]),
                                                   correlation, NULL));
    UPDATE fedstac.access_grant g SET cause = e.event_id
        FROM unnest(closed_ids, events) e (id, event_id) WHERE g.id = e.id;
    RETURN cardinality(closed_ids);
END $$;
