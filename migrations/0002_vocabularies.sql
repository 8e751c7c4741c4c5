-- Vocabulary snapshots beyond those that ship with the package: installed by an operator, or fetched by an index node.
CREATE TABLE fedstac.vocabulary (
    project     text NOT NULL,
    version     text NOT NULL,
    digest      bytea NOT NULL,                 -- sha-256 of the snapshot
    snapshot    bytea NOT NULL,
    source      text NOT NULL,                  -- who installed it, or the node that it was fetched from
    installed   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project, version)
);
GRANT SELECT, INSERT ON fedstac.vocabulary TO fedstac_writer;

-- Findings of the vocabulary that the stored document was allowed to keep: JSON, [[rule, pointer], …].
ALTER TABLE fedstac.record ADD COLUMN cv_excused text;
