-- Who is logged in at the web console. The cookie has a secret; here are its hash, and the caller's token sealed with it.

CREATE TABLE fedstac.console_session (
    id          bytea PRIMARY KEY CHECK (octet_length(id) = 32),    -- SHA-256 of the secret
    sealed      text NOT NULL,                                      -- the token, with a key that only the cookie has
    actor       text NOT NULL,
    opened_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    used_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    ends_at     timestamptz NOT NULL                                -- however much it is used
);
CREATE INDEX console_session_ends ON fedstac.console_session (ends_at);
CREATE INDEX console_session_actor ON fedstac.console_session (actor, opened_at);

GRANT SELECT, INSERT, UPDATE, DELETE ON fedstac.console_session TO fedstac_writer;
