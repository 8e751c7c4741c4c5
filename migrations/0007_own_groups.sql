-- Groups of fedstac's own: for a project and an institution (or all: *), with members and with those who look after them.
CREATE TABLE fedstac.own_group (
    name        text PRIMARY KEY CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'),
    project     text NOT NULL,
    institution text NOT NULL,
    title       text NOT NULL DEFAULT '',
    created     timestamptz NOT NULL DEFAULT now(),
    created_by  text NOT NULL
);
CREATE TABLE fedstac.own_group_person (
    own_group   text NOT NULL REFERENCES fedstac.own_group (name) ON DELETE CASCADE,
    principal   text NOT NULL,                  -- a name as in the logs
    part        text NOT NULL CHECK (part IN ('member', 'manager')),
    added       timestamptz NOT NULL DEFAULT now(),
    added_by    text NOT NULL,
    PRIMARY KEY (own_group, principal, part)
);
CREATE INDEX own_group_person_principal ON fedstac.own_group_person (principal);
GRANT SELECT, INSERT, UPDATE, DELETE ON fedstac.own_group, fedstac.own_group_person TO fedstac_writer;

-- What the rights of a request's submitter follow from, beside roles, as of the 202: groups and entitlements, as JSON text.
ALTER TABLE fedstac.request ADD COLUMN identity text;
