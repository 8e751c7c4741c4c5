-- What a caller has sent under an Idempotency-Key: the same again gets the same request, also while it runs.
CREATE TABLE fedstac.idempotency (
    submitter   text NOT NULL,
    route       text NOT NULL,                  -- method and path
    key         text NOT NULL,
    digest      bytea NOT NULL,                 -- sha-256 of the body
    request     uuid NOT NULL REFERENCES fedstac.request (id),
    at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (submitter, route, key)
);
CREATE INDEX idempotency_at ON fedstac.idempotency (at);
GRANT SELECT, INSERT, DELETE ON fedstac.idempotency TO fedstac_writer;
