-- Lists of deletions (docs/adr/0053), and requests of people who are erased.

-- What is open from before is summed up (0088), and the lists and counts of deletions get their indexes.
SELECT fedstac.sum_up_deletions(ARRAY(SELECT id FROM fedstac.deletion WHERE state = 'open'));

-- Counts read these alone.
CREATE INDEX deletion_standing ON fedstac.deletion
    (collection, institution, configuration, is_blocked, has_failed, grace_until, late_after) WHERE state = 'open';
DROP INDEX fedstac.deletion_scope;
CREATE INDEX deletion_scope ON fedstac.deletion (collection, institution, state);

-- The orders of the list. Of all states by the mark there is deletion_place.
DROP INDEX fedstac.deletion_listed;
CREATE INDEX deletion_listed ON fedstac.deletion (state, marked_at, id);
CREATE INDEX deletion_grace ON fedstac.deletion (grace_until, id) WHERE state = 'open';
CREATE INDEX deletion_name ON fedstac.deletion (dataset, id);

-- Those that are few among many, and what the schedule looks for.
CREATE INDEX deletion_ready ON fedstac.deletion (collection, grace_until, id) WHERE state = 'open' AND NOT is_blocked;
CREATE INDEX deletion_failed ON fedstac.deletion (marked_at, id) WHERE state = 'open' AND has_failed;
CREATE INDEX deletion_late ON fedstac.deletion (late_after) WHERE state = 'open' AND late_after IS NOT NULL;

-- What somebody asked for and nobody has begun stops when they are erased (docs/deletion.md, "When a person leaves"). What
-- is being performed is done first: its items have their results then.
CREATE OR REPLACE FUNCTION fedstac.close_person(who text, project_left text, really boolean)
RETURNS TABLE (kind text, name text, project text, count bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    pseudonym_of text := substring(who FROM '^person:([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$');
BEGIN
    -- two who do this at once wait for each other, and so does whoever changes one of the groups
    PERFORM pg_advisory_xact_lock(hashtext('fedstac.person'), hashtext(who));
    IF really AND project_left IS NULL THEN
        PERFORM FROM fedstac.shard s ORDER BY s.n FOR UPDATE;  -- after the batches that are being performed
    END IF;
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
        RETURN QUERY SELECT 'request', r.id::text, r.collection, 1::bigint
            FROM (SELECT DISTINCT i.request FROM fedstac.request_item i WHERE i.status = 'queued') q
            JOIN fedstac.request r ON r.id = q.request WHERE r.submitter = who ORDER BY 2;
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
        WITH refused AS (                     -- as publication.cancel
            UPDATE fedstac.request_item i
            SET status = 'rejected', outcome = 'rejected', problem = 'cancelled', finished = clock_timestamp(),
                detail = 'cancelled before it was worked on: whoever asked for it was erased', prepared = NULL,
                coded = NULL, trying = NULL
            FROM fedstac.request r WHERE r.id = i.request AND i.status = 'queued' AND r.submitter = who
            RETURNING i.shard, i.dataset, r.id, r.collection, r.correlation),
        freed AS (                            -- a worker that has read an item can no longer perform it
            UPDATE fedstac.shard s
            SET token = NULL, worker = NULL, backend = NULL, backend_start = NULL, until = '-infinity',
                attempts = greatest(s.attempts - 1, 0)
            WHERE s.n IN (SELECT f.shard FROM refused f) AND s.token IS NOT NULL)
        INSERT INTO fedstac.audit (actor, action, collection, dataset, request, correlation, outcome, rule, detail)
        SELECT 'database:' || session_user, 'cancel', f.collection, f.dataset, f.id, f.correlation, 'rejected',
               'cancelled', '{"reason":"erase-person"}'
        FROM refused f ORDER BY f.id, f.dataset;
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
