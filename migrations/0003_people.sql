-- Who is behind the names in logs, for those whom an identity provider vouches for. Erasing somebody is deleting the row:
-- their pseudonym stays in the logs and names nobody any more; who comes back gets another.
CREATE TABLE fedstac.person (
    pseudonym   uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    iss         text NOT NULL,
    sub         text NOT NULL,
    name        text,
    email       text,
    first_seen  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (iss, sub)
);

GRANT SELECT, INSERT, UPDATE ON fedstac.person TO fedstac_writer;
