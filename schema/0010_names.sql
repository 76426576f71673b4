-- Names of organizations, and short names ("slugs") of organizations and applications for the path of requests.
--
-- A name is any text for people. A slug is what a path may contain, and never looks like a UUID, so that an id in a path
-- means the same before and after somebody chooses a slug. Organizations and applications need neither.

CREATE OR REPLACE FUNCTION tkserver_is_slug(slug TEXT) RETURNS BOOLEAN
LANGUAGE sql IMMUTABLE STRICT AS $$
    SELECT slug ~ '^[A-Za-z0-9._-]{1,100}$' AND slug NOT IN ('.', '..')
        AND replace(slug, '-', '') !~ '^[0-9A-Fa-f]{32}$'
$$;

CREATE TABLE IF NOT EXISTS orgs (
    org_id     UUID PRIMARY KEY,
    name       VARCHAR(100) NOT NULL UNIQUE CHECK (name <> ''),
    slug       VARCHAR(100) UNIQUE CHECK (tkserver_is_slug(slug)),
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

COMMENT ON TABLE orgs IS 'Names of organizations. An organization without a name needs no row.';
COMMENT ON COLUMN orgs.slug IS 'Stands for org_id in the path of a request; NULL for none.';
COMMENT ON INDEX orgs_pkey IS 'Finds the name of an organization.';
COMMENT ON INDEX orgs_name_key IS 'Finds an organization by its name.';
COMMENT ON INDEX orgs_slug_key IS 'Finds the organization of a request.';

-- Names of applications were unique in the whole installation. They fit as slugs unless they contain other characters,
-- or look like UUIDs: then the operator chooses a slug if one is needed.

DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = 'apps'::regclass AND attname = 'slug' AND NOT attisdropped
    ) THEN
        ALTER TABLE apps ADD COLUMN slug VARCHAR(100) CHECK (tkserver_is_slug(slug));
        UPDATE apps SET slug = name WHERE tkserver_is_slug(name);
    END IF;
END
$$;

COMMENT ON COLUMN apps.slug IS 'Stands for app_id in the path of a request; NULL for none.';

ALTER TABLE apps DROP CONSTRAINT IF EXISTS apps_name_key;
CREATE UNIQUE INDEX IF NOT EXISTS apps_name_key ON apps (org_id, name);
COMMENT ON INDEX apps_name_key IS 'Finds an application of an organization by its name.';
CREATE UNIQUE INDEX IF NOT EXISTS apps_slug_key ON apps (org_id, slug);
COMMENT ON INDEX apps_slug_key IS 'Finds the application of a request.';

-- Servers cache, with the credentials of an application, its slug and that of its organization.

DROP TRIGGER IF EXISTS orgs_changed ON orgs;
CREATE TRIGGER orgs_changed
    AFTER INSERT OR DELETE OR TRUNCATE OR UPDATE OF org_id, slug
    ON orgs
    FOR EACH STATEMENT EXECUTE FUNCTION tkserver_notify_credentials();

DROP TRIGGER IF EXISTS apps_slug_changed ON apps;
CREATE TRIGGER apps_slug_changed
    AFTER UPDATE OF slug
    ON apps
    FOR EACH STATEMENT EXECUTE FUNCTION tkserver_notify_credentials();
