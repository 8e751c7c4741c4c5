-- Run once as a superuser, connected to the database that fedstac will use:
--   fedstac migrate --print-setup | psql -d <database>
-- Run it again before `fedstac migrate` where that says so: a newer fedstac may know more roles. It repeats safely.
-- Then set passwords:  ALTER ROLE fedstac_owner PASSWORD '…';  ALTER ROLE fedstac_writer PASSWORD '…';
-- and those of fedstac_sequencer, fedstac_reader, fedstac_auditor and fedstac_deleter where they are used.
CREATE EXTENSION IF NOT EXISTS postgis;
CREATE EXTENSION IF NOT EXISTS btree_gist;
CREATE EXTENSION IF NOT EXISTS unaccent;
DO $$ BEGIN
    IF to_regrole('fedstac_owner') IS NULL THEN CREATE ROLE fedstac_owner LOGIN; END IF;
    IF to_regrole('fedstac_writer') IS NULL THEN CREATE ROLE fedstac_writer LOGIN; END IF;
    IF to_regrole('fedstac_sequencer') IS NULL THEN CREATE ROLE fedstac_sequencer LOGIN; END IF;
    IF to_regrole('fedstac_reader') IS NULL THEN CREATE ROLE fedstac_reader LOGIN; END IF;
    IF to_regrole('fedstac_auditor') IS NULL THEN CREATE ROLE fedstac_auditor LOGIN; END IF;
    IF to_regrole('fedstac_deleter') IS NULL THEN CREATE ROLE fedstac_deleter LOGIN; END IF;
    IF to_regrole('pgstac_admin') IS NULL THEN CREATE ROLE pgstac_admin; END IF;
    IF to_regrole('pgstac_read') IS NULL THEN CREATE ROLE pgstac_read; END IF;
    IF to_regrole('pgstac_ingest') IS NULL THEN CREATE ROLE pgstac_ingest; END IF;
END $$;
-- pgstac's own migration creates and grants roles, which PostgreSQL allows to CREATEROLE only
ALTER ROLE fedstac_owner CREATEROLE;
GRANT pgstac_admin, pgstac_read, pgstac_ingest TO fedstac_owner WITH ADMIN OPTION;
GRANT pgstac_read, pgstac_ingest TO fedstac_writer;
GRANT pgstac_read TO fedstac_reader;
-- the text of a search that fails may have a megabyte; fedstac logs its own faults
ALTER ROLE fedstac_writer SET log_min_error_statement = panic;
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I OWNER TO fedstac_owner', current_database()); END $$;

