-- What the files of a dataset are known by: 64 bits of a hash for each tracking id, and for the set of their checksums
-- (domain/crosschecks.py). By them a node that publishes warns of files that are in another dataset already.
CREATE TABLE fedstac.file_mark (
    mark        bigint NOT NULL,
    collection  text NOT NULL,
    id          text NOT NULL
);
GRANT SELECT, INSERT, DELETE ON fedstac.file_mark TO fedstac_writer;

-- Of what is published here already. Other nodes' datasets are theirs to compare.
CREATE FUNCTION pg_temp.mark(value text) RETURNS bigint LANGUAGE sql IMMUTABLE AS
    $$ SELECT ('x' || encode(substr(sha256(convert_to(value, 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint $$;
INSERT INTO fedstac.file_mark (mark, collection, id)
SELECT m.mark, r.collection, r.id
FROM fedstac.record r
CROSS JOIN LATERAL (
    SELECT pg_temp.mark(found[1]) AS mark
    FROM regexp_matches(r.document, ':tracking_id":"([^"\\]+)"', 'g') found
    UNION
    SELECT pg_temp.mark(string_agg(checksum, ' ' ORDER BY checksum COLLATE "C")) FROM (
        SELECT DISTINCT found[1] AS checksum
        FROM regexp_matches(r.document, '"file:checksum":"([^"\\]+)"', 'g') found) checksums
    HAVING count(*) > 0
) m
WHERE r.document IS NOT NULL AND r.origin = (SELECT origin FROM fedstac.feed_state);

CREATE INDEX file_mark_mark ON fedstac.file_mark (mark);
