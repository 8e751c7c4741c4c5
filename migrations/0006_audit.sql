-- The audit log as a chain: each row's place and a hash over it and all before it. Roles beside owner and writer.
-- Needs the roles that `fedstac migrate --print-setup` creates.

-- Rows of before have no transaction that could be under way still: '1' lies below every snapshot.
ALTER TABLE fedstac.audit
    ADD COLUMN xid          xid8 NOT NULL DEFAULT '1',
    ADD COLUMN issuer       text,                       -- host of the identity provider; null: a token of this node's own
    ADD COLUMN correlation  text,                       -- x-request-id
    ADD COLUMN rule         text,                       -- what decided: the problem's name, or the rule that allowed it
    ADD COLUMN items        integer NOT NULL DEFAULT 1, -- a row may stand for many refusals of one kind
    ADD COLUMN detail       text;                       -- JSON: counts by problem and the first few ids
ALTER TABLE fedstac.audit ALTER COLUMN xid SET DEFAULT pg_current_xact_id();
CREATE INDEX audit_xid ON fedstac.audit (xid);

-- Written by chain_audit() alone. Its two keys are the fence against a second sequencer.
CREATE TABLE fedstac.audit_chain (
    pos         bigint PRIMARY KEY,
    id          bigint NOT NULL UNIQUE,         -- of the row; no reference: a row that goes is to be noticed, not prevented
    hash        bytea NOT NULL                  -- sha-256 of the hash before and the row's canonical text
);
CREATE TABLE fedstac.audit_head (
    one         boolean PRIMARY KEY DEFAULT true CHECK (one),
    snap        pg_snapshot NOT NULL,
    pos         bigint NOT NULL,
    hash        bytea NOT NULL
);
INSERT INTO fedstac.audit_head (snap, pos, hash) VALUES ('1:1:', 0, decode(repeat('00', 32), 'hex'));

-- The canonical text of a row at its place: a JSON array, the same byte for byte as domain/audit.py makes it.
CREATE FUNCTION fedstac.audit_text(a fedstac.audit, pos bigint) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT json_build_array(pos, a.id, to_char(a.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), a.actor,
                            a.issuer, a.action, a.collection, a.dataset, a.request, a.correlation, a.outcome, a.rule,
                            a.items, a.detail, encode(a.digest_before, 'hex'), encode(a.digest_after, 'hex'))::text
$$;

CREATE FUNCTION fedstac.audit_link(so_far bytea, head bytea, entry text) RETURNS bytea LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN sha256(coalesce(so_far, head) || convert_to(entry, 'UTF8'));
END $$;
CREATE AGGREGATE fedstac.audit_linked(head bytea, entry text) (SFUNC = fedstac.audit_link, STYPE = bytea);

-- Gives places to the rows that became visible since the last look, as feed.SEQUENCE does and for the same reason: ids
-- are drawn before commits become visible. To be called in a repeatable read transaction.
-- `everything`: this database was restored, its transaction ids mean nothing; every row without a place gets one.
CREATE FUNCTION fedstac.chain_audit(everything boolean DEFAULT false) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    given bigint;
BEGIN
    IF everything THEN
        LOCK TABLE fedstac.audit IN SHARE ROW EXCLUSIVE MODE; -- no row is on its way
    END IF;
    WITH prev AS MATERIALIZED (SELECT snap, pos, hash FROM fedstac.audit_head),
         fresh AS MATERIALIZED (
            SELECT id FROM fedstac.audit WHERE NOT everything AND xid >= (SELECT pg_snapshot_xmax(snap) FROM prev)
            UNION ALL
            SELECT id FROM fedstac.audit
            WHERE NOT everything AND xid = ANY (ARRAY(SELECT pg_snapshot_xip(snap) FROM prev))
            UNION ALL
            SELECT id FROM fedstac.audit a
            WHERE everything AND NOT EXISTS (SELECT FROM fedstac.audit_chain c WHERE c.id = a.id)),
         placed AS (
            SELECT (SELECT pos FROM prev) + row_number() OVER (ORDER BY id) AS pos, id FROM fresh),
         put AS (
            INSERT INTO fedstac.audit_chain (pos, id, hash)
            SELECT p.pos, p.id, fedstac.audit_linked((SELECT hash FROM prev), fedstac.audit_text(a, p.pos))
                                OVER (ORDER BY p.pos)
            FROM placed p JOIN fedstac.audit a ON a.id = p.id RETURNING pos, hash)
    UPDATE fedstac.audit_head h
    SET snap = pg_current_snapshot(), pos = h.pos + (SELECT count(*) FROM put),
        hash = coalesce((SELECT put.hash FROM put ORDER BY put.pos DESC LIMIT 1), h.hash)
    WHERE everything OR EXISTS (SELECT 1 FROM fresh) RETURNING (SELECT count(*) FROM put) INTO given;
    IF everything THEN -- only what a later look could take for new: the rest lies below every snapshot to come
        UPDATE fedstac.audit SET xid = '0' WHERE xid >= pg_snapshot_xmin(pg_current_snapshot());
    END IF;
    RETURN coalesce(given, 0);
END $$;
REVOKE ALL ON FUNCTION fedstac.chain_audit(boolean) FROM public;

-- Who may do what; tests/db/test_roles.py has the whole table.
GRANT USAGE ON SCHEMA fedstac TO fedstac_sequencer, fedstac_reader, fedstac_auditor, fedstac_deleter;

-- The writer runs the sequencer as well where that has no connection of its own; the chain it can only prolong.
GRANT SELECT ON fedstac.audit_chain, fedstac.audit_head TO fedstac_writer;
GRANT EXECUTE ON FUNCTION fedstac.chain_audit(boolean) TO fedstac_writer, fedstac_sequencer;

GRANT SELECT, UPDATE ON fedstac.feed_state TO fedstac_sequencer;
GRANT SELECT, INSERT ON fedstac.feed, fedstac.epoch TO fedstac_sequencer;
GRANT INSERT ON fedstac.feed_state TO fedstac_sequencer;
GRANT SELECT, UPDATE (xid) ON fedstac.outbox TO fedstac_sequencer;
GRANT SELECT, INSERT, DELETE ON fedstac.tally TO fedstac_sequencer;
GRANT SELECT ON fedstac.vocabulary, fedstac.audit_chain, fedstac.audit_head TO fedstac_sequencer;
GRANT EXECUTE ON FUNCTION fedstac.extend_outbox(integer, bigint) TO fedstac_sequencer;

-- What everybody may know anyway: for statistics, dashboards, exports.
GRANT SELECT ON fedstac.collection, fedstac.lineage, fedstac.record, fedstac.tally, fedstac.outbox, fedstac.feed,
                fedstac.epoch, fedstac.node_status, fedstac.vocabulary TO fedstac_reader;
GRANT SELECT (origin, epoch, pos) ON fedstac.feed_state TO fedstac_reader;

GRANT SELECT ON fedstac.audit, fedstac.audit_chain, fedstac.audit_head TO fedstac_auditor;
GRANT SELECT (origin, epoch, pos) ON fedstac.feed_state TO fedstac_auditor;

-- Erases people; that is written down as well.
GRANT SELECT (pseudonym), DELETE ON fedstac.person TO fedstac_deleter;
GRANT INSERT ON fedstac.audit TO fedstac_deleter;
