-- Views for other tools, and a role that can read them and nothing else (docs/insight.md).
--
-- Their columns are stable, unlike those of the tables. They contain no users, only numbers of users. The barriers keep
-- functions that a reader writes from seeing other rows of the tables.

CREATE OR REPLACE VIEW insight_daily WITH (security_barrier) AS
SELECT
    o.name AS org, i.org_id, coalesce(a.name, i.app_id::text) AS app, i.app_id, i.timezone,
    c.start AS day, c.segment = 1 AS ci, c.events, c.user_count AS users, c.outcomes, c.failures
FROM insight_cells AS c JOIN insight_apps AS i USING (app)
LEFT JOIN apps AS a USING (app_id, org_id) LEFT JOIN orgs AS o USING (org_id)
WHERE c.topic = 0 AND c.period = 1 AND c.segment IN (0, 1) AND c.item = 0 AND c.events > 0;

COMMENT ON VIEW insight_daily IS 'Events and users of each application on each day, with CI and without.';

CREATE OR REPLACE VIEW insight_commands WITH (security_barrier) AS
SELECT
    o.name AS org, i.org_id, coalesce(a.name, i.app_id::text) AS app, i.app_id, i.timezone,
    c.start AS day, c.segment = 1 AS ci, k.key::jsonb->>0 AS kind, k.key::jsonb->>1 AS name,
    c.events, c.user_count AS users, c.outcomes, c.failures
FROM insight_cells AS c JOIN insight_apps AS i USING (app) JOIN insight_items AS k USING (app, topic, item)
LEFT JOIN apps AS a USING (app_id, org_id) LEFT JOIN orgs AS o USING (org_id)
WHERE c.topic = 1 AND c.period = 1 AND c.segment IN (0, 1) AND c.events > 0;

COMMENT ON VIEW insight_commands IS
    'Events and users of each command, feature and custom type on each day, with CI and without.';

CREATE OR REPLACE VIEW insight_versions WITH (security_barrier) AS
SELECT
    o.name AS org, i.org_id, coalesce(a.name, i.app_id::text) AS app, i.app_id, i.timezone,
    c.start AS day, s.ci, s.version, s.os, nullif(s.arch, '') AS arch,
    c.events, c.user_count AS users, c.outcomes, c.failures
FROM insight_cells AS c JOIN insight_apps AS i USING (app) JOIN insight_segments AS s USING (app, segment)
LEFT JOIN apps AS a USING (app_id, org_id) LEFT JOIN orgs AS o USING (org_id)
WHERE c.topic = 0 AND c.period = 1 AND c.item = 0 AND c.events > 0;

COMMENT ON VIEW insight_versions IS
    'Events and users of each version, operating system and architecture on each day, with CI and without.';

-- Roles belong to all databases of a PostgreSQL server, and the owner of this database may not be allowed to create one.
-- Another database may create it at the same time.

DO $$
BEGIN
    IF to_regrole('tkserver_insight') IS NULL THEN
        BEGIN
            CREATE ROLE tkserver_insight NOLOGIN;
        EXCEPTION WHEN insufficient_privilege OR duplicate_object OR unique_violation THEN
            NULL;
        END;
    END IF;
    IF to_regrole('tkserver_insight') IS NOT NULL THEN
        GRANT SELECT ON insight_daily, insight_commands, insight_versions TO tkserver_insight;
    END IF;
END
$$;
