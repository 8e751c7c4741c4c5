-- What somebody began and what goes on without them stops when they are erased: changes of many datasets, and deletions
-- of collections (docs/deletion.md, "When a person leaves").

-- The deletion of a collection ends with an event, which its worker announces: it is stopped here, and ended there.
ALTER TABLE fedstac.cascade ADD COLUMN is_stopped boolean NOT NULL DEFAULT false;

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
        SELECT 'grant', g.id::text, g.collection, 1::bigint FROM fedstac.access_grant g
        WHERE g.subject = who AND g.closed_at IS NULL AND (project_left IS NULL OR g.collection = project_left)
        ORDER BY 2;
    RETURN QUERY
        SELECT 'load', l.id::text, l.collection, 1::bigint FROM fedstac.load l
        WHERE l.submitter = who AND l.bulk IS NULL AND l.cancelled_by IS NULL AND l.done_at IS NULL
          AND (project_left IS NULL OR l.collection = project_left)
        ORDER BY l.id FOR UPDATE;
    IF project_left IS NULL THEN
        RETURN QUERY SELECT 'bulk', b.id::text, '*', 1::bigint FROM fedstac.bulk b  -- after a part that is being done
            WHERE b.submitter = who AND b.finished_at IS NULL ORDER BY b.id FOR UPDATE;
        RETURN QUERY SELECT 'cascade', c.id::text, c.collection, 1::bigint FROM fedstac.cascade c
            WHERE c.actor = who AND c.ended_at IS NULL AND NOT c.is_stopped ORDER BY c.id FOR UPDATE;
        RETURN QUERY SELECT 'subscription', s.name, '', 1::bigint FROM fedstac.subscription s
            WHERE s.owner = who ORDER BY 2 FOR UPDATE;
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
    UPDATE fedstac.load l                     -- as loads.cancel: what it states goes in the steps that follow
        SET cancelled_by = 'database:' || session_user, step = 'empty', step_at = NULL, compared_at = NULL,
            counts = NULL, examples = NULL
        WHERE l.submitter = who AND l.bulk IS NULL AND l.cancelled_by IS NULL AND l.done_at IS NULL
          AND (project_left IS NULL OR l.collection = project_left);
    IF project_left IS NULL THEN
        UPDATE fedstac.bulk b SET cancelled_by = 'database:' || session_user, finished_at = clock_timestamp()
            WHERE b.submitter = who AND b.finished_at IS NULL;  -- as bulks.cancel
        UPDATE fedstac.cascade c SET is_stopped = true, next_at = clock_timestamp()
            WHERE c.actor = who AND c.ended_at IS NULL AND NOT c.is_stopped;
        DELETE FROM fedstac.subscription s WHERE s.owner = who;
        DELETE FROM fedstac.destination WHERE owner = who;    -- with the messages on their way
        DELETE FROM fedstac.confirmation WHERE owner = who;
        DELETE FROM fedstac.console_session WHERE actor = who;
        DELETE FROM fedstac.person WHERE pseudonym = pseudonym_of::uuid;
    END IF;
END $$;
