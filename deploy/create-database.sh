#!/bin/sh
# Create a database for the server, and a role that owns it and has no other rights. The PostgreSQL image runs this
# script once, when its volume is empty. The script removes the password of the superuser, so that the superuser can log
# in only from inside the container:
#
#     docker compose -f deploy/docker-compose.yml exec database psql -U postgres telemetry
set -eu

psql --set=ON_ERROR_STOP=1 --no-psqlrc --username="${POSTGRES_USER:-postgres}" --dbname=postgres <<'SQL'
\getenv password POSTGRES_PASSWORD
CREATE ROLE tkserver LOGIN PASSWORD :'password';
-- Do not log failed statements: they contain values of events.
ALTER ROLE tkserver SET log_min_error_statement = panic;
CREATE DATABASE telemetry OWNER tkserver;
REVOKE CONNECT, TEMPORARY ON DATABASE telemetry FROM PUBLIC;
-- For tools that show statistics: docs/insight.md. The migration lets this role read the views.
CREATE ROLE tkserver_insight NOLOGIN;
GRANT CONNECT ON DATABASE telemetry TO tkserver_insight;
ALTER ROLE CURRENT_USER PASSWORD NULL;
SQL
