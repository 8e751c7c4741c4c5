-- Retention: the log goes by whole partitions of the outbox, once everybody who counts has passed them.

-- Everything through here is gone, or is going. Readers look here first, so that nobody reads over a hole.
CREATE TABLE fedstac.forgotten (
    one         boolean PRIMARY KEY DEFAULT true CHECK (one),
    pos         bigint NOT NULL,                -- of the feed
    id          bigint NOT NULL                 -- of the outbox
);
INSERT INTO fedstac.forgotten (pos, id) VALUES (0, 0);

-- Who was behind for too long: the log is no longer kept for them, until they acknowledge more than they had.
CREATE TABLE fedstac.lapse (
    name        text PRIMARY KEY,               -- a node, a consumer of it, or the notifications of this node
    pos         bigint NOT NULL,                -- through which it had everything then
    at          timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Forgets the oldest partition of the outbox and returns the last position in it; null where that cannot be: it is still
-- written to, or has events without a position.
CREATE FUNCTION fedstac.forget_outbox(number bigint, rows_each bigint DEFAULT 1000000) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    last_id bigint := (number + 1) * rows_each;
    last_pos bigint;
BEGIN
    IF EXISTS (SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
               WHERE i.inhparent = 'fedstac.outbox'::regclass AND substring(c.relname FROM 8)::bigint < number)
       OR (SELECT coalesce(last_value, 0) FROM pg_sequences
           WHERE schemaname = 'fedstac' AND sequencename = 'outbox_id_seq') <= last_id
       OR EXISTS (SELECT FROM fedstac.outbox
                  WHERE id <= last_id AND xid >= (SELECT pg_snapshot_xmin(snap) FROM fedstac.feed_state)) THEN
        RETURN NULL;
    END IF;
    SELECT coalesce(max(f.pos), g.pos) INTO last_pos
        FROM fedstac.forgotten g LEFT JOIN fedstac.feed f ON f.id <= last_id GROUP BY g.pos;
    UPDATE fedstac.forgotten SET pos = greatest(pos, last_pos), id = last_id WHERE id < last_id OR pos < last_pos;
    RETURN last_pos;
END $$;

-- Deletes a few of the feed's rows that are forgotten; returns how many.
CREATE FUNCTION fedstac.sweep_feed(most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    gone integer;
BEGIN
    DELETE FROM fedstac.feed WHERE pos = ANY (ARRAY(
        SELECT f.pos FROM fedstac.feed f, fedstac.forgotten g WHERE f.id <= g.id AND f.pos <= g.pos
        ORDER BY f.id LIMIT most));
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END $$;

-- Drops a partition that is forgotten and swept; returns whether it did. Writers wait at most for as long as the lock
-- times out: then it raises, and somebody tries again later. The table first and then the partition, as writers take
-- them. Whoever drew an id in the partition and has not committed holds a lock on it; what comes of that is looked at
-- under the lock.
CREATE FUNCTION fedstac.drop_outbox(number bigint, rows_each bigint DEFAULT 1000000) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '300ms' AS $$
DECLARE
    name text := 'outbox_' || number;
    last_id bigint := (number + 1) * rows_each;
    is_needed boolean;
BEGIN
    IF last_id > (SELECT id FROM fedstac.forgotten) THEN
        RETURN false;
    END IF;
    LOCK TABLE ONLY fedstac.outbox IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('LOCK TABLE fedstac.%I IN ACCESS EXCLUSIVE MODE', name);
    EXECUTE format('SELECT EXISTS (SELECT FROM fedstac.feed WHERE id <= %s) OR EXISTS (SELECT FROM fedstac.%I WHERE xid >= '
                   '(SELECT pg_snapshot_xmin(snap) FROM fedstac.feed_state))', last_id, name) INTO is_needed;
    IF is_needed THEN
        RETURN false;
    END IF;
    EXECUTE format('DROP TABLE fedstac.%I', name);
    RETURN true;
END $$;
REVOKE ALL ON FUNCTION fedstac.forget_outbox(bigint, bigint), fedstac.sweep_feed(integer),
    fedstac.drop_outbox(bigint, bigint) FROM public;

GRANT SELECT ON fedstac.forgotten TO fedstac_writer, fedstac_sequencer, fedstac_reader;
GRANT SELECT, INSERT, UPDATE, DELETE ON fedstac.lapse TO fedstac_writer;
GRANT EXECUTE ON FUNCTION fedstac.forget_outbox(bigint, bigint), fedstac.sweep_feed(integer),
    fedstac.drop_outbox(bigint, bigint) TO fedstac_writer;
