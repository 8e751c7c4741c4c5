-- Collections that are deleted with their datasets, and which datasets have which files.

-- One row a deletion of a collection. Its id is that of the event that announced it: the marks of its datasets name it.
CREATE TABLE fedstac.cascade (
    id              uuid PRIMARY KEY,
    collection      text NOT NULL,
    state           text NOT NULL DEFAULT 'marking' CHECK (state IN ('marking', 'waiting', 'done', 'cancelled')),
    reason          text NOT NULL,
    actor           text NOT NULL,
    roles           text[] NOT NULL,            -- of the actor, when they asked; their identity, packed, as in a request
    identity        text,
    traceparent     text,
    datasets        bigint NOT NULL,            -- that were there, as the actor confirmed
    after_id        text NOT NULL DEFAULT '',   -- every dataset up to this one was looked at in this pass
    refused         bigint NOT NULL DEFAULT 0,  -- datasets that could not be marked in this pass
    refusal         text,                       -- why, of the last of them
    next_at         timestamptz NOT NULL,       -- not worked on before
    begun_at        timestamptz NOT NULL,
    ended_at        timestamptz,
    ended_by        text,
    CHECK ((state IN ('done', 'cancelled')) = (ended_at IS NOT NULL))
);
CREATE UNIQUE INDEX cascade_open ON fedstac.cascade (collection) WHERE ended_at IS NULL;
CREATE INDEX cascade_listed ON fedstac.cascade (collection, begun_at);

-- What the files of each dataset are known by: 64 bits of a hash for each address and each checksum in its document
-- (domain/shared_files.py). By them a deletion tells which files no other dataset has. Of what this node publishes.
CREATE TABLE fedstac.file_reference (
    collection  text NOT NULL,
    id          text NOT NULL,
    marks       bigint[] NOT NULL,
    PRIMARY KEY (collection, id)
);

CREATE OR REPLACE FUNCTION pg_temp.mark(value text) RETURNS bigint LANGUAGE sql IMMUTABLE AS
    $$ SELECT ('x' || encode(substr(sha256(convert_to(value, 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint $$;
INSERT INTO fedstac.file_reference (collection, id, marks)
SELECT r.collection, r.id, array_agg(DISTINCT pg_temp.mark(found[1]))
FROM fedstac.record r
CROSS JOIN LATERAL regexp_matches(r.document, '"(?:href|file:checksum)":"([^"\\]+)"', 'g') found
WHERE r.document IS NOT NULL AND r.origin = (SELECT origin FROM fedstac.feed_state)
GROUP BY r.collection, r.id;
CREATE INDEX file_reference_marks ON fedstac.file_reference USING gin (marks);

GRANT SELECT, INSERT, UPDATE ON fedstac.cascade TO fedstac_writer;
GRANT SELECT, INSERT, UPDATE, DELETE ON fedstac.file_reference TO fedstac_writer;
GRANT SELECT ON fedstac.cascade TO fedstac_reader;
