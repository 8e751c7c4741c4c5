#!/bin/bash
# Prepare the databases of fedstac when PostgreSQL's container starts for the first time: extensions, roles, passwords.
# The image of PostgreSQL runs it as its superuser. DATABASES: their names; DATABASE_PASSWORD: of fedstac's roles.
set -euo pipefail
export PGOPTIONS="-c client_min_messages=warning" # that a role is there already is no news
setup=${FEDSTAC_SETUP:-/fedstac/setup.sql} # fedstac migrate --print-setup

for database in $DATABASES; do
    createdb --username "$POSTGRES_USER" "$database"
    psql --username "$POSTGRES_USER" --dbname "$database" --no-psqlrc --quiet --set ON_ERROR_STOP=1 --file "$setup"
done
for role in owner writer sequencer reader auditor deleter; do
    psql --username "$POSTGRES_USER" --dbname postgres --no-psqlrc --quiet --set ON_ERROR_STOP=1 \
        --set password="$DATABASE_PASSWORD" <<<"ALTER ROLE fedstac_$role PASSWORD :'password';"
done
