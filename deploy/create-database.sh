#!/bin/sh
# What the image of PostgreSQL runs once, when its volume is empty: a database for the server, and a role that owns it
# and may do nothing else. The superuser keeps no password, so that it is let in from within the container only:
#
#     docker compose -f deploy/docker-compose.yml exec database psql -U postgres telemetry
set -eu

psql --set=ON_ERROR_STOP=1 --no-psqlrc --username="${POSTGRES_USER:-postgres}" --dbname=postgres <<'SQL'
\getenv password POSTGRES_PASSWORD
CREATE ROLE tkserver LOGIN PASSWORD :'password';
-- What PostgreSQL says of a statement that fails holds the events' values.
ALTER ROLE tkserver SET log_min_error_statement = panic;
CREATE DATABASE telemetry OWNER tkserver;
REVOKE CONNECT, TEMPORARY ON DATABASE telemetry FROM PUBLIC;
ALTER ROLE CURRENT_USER PASSWORD NULL;
SQL
