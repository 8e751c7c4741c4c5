-- Other rules for the open deletions of a project are applied in parts: those of a version before this one get its rules.
-- The row goes when none is left.
CREATE TABLE fedstac.deletion_revision (
    project     text PRIMARY KEY,
    version     integer NOT NULL,
    begun_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    FOREIGN KEY (project, version) REFERENCES fedstac.deletion_configuration
);
GRANT SELECT, INSERT, UPDATE, DELETE ON fedstac.deletion_revision TO fedstac_writer;
GRANT SELECT ON fedstac.deletion_revision TO fedstac_reader;

-- The changes of many datasets that chose one of them: a purge takes away by which words they chose.
CREATE INDEX bulk_dataset_name ON fedstac.bulk_dataset (dataset);
