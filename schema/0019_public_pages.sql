-- Pages with totals that everybody may see, of applications that the operator has published (docs/dashboard.md).

CREATE TABLE IF NOT EXISTS public_pages (
    slug         VARCHAR(100) PRIMARY KEY CHECK (tkserver_is_slug(slug) AND slug !~* '\.json$'),
    org_id       UUID NOT NULL,
    app_id       UUID NOT NULL,
    published_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    last_day     DATE NOT NULL,
    numbers      JSON NOT NULL,
    computed_at  TIMESTAMPTZ NOT NULL,
    UNIQUE (app_id, org_id)
);

COMMENT ON TABLE public_pages IS
    'Published applications. The numbers are computed once a day, so that all servers show the same, and so that changes
within a day reveal nothing.';
COMMENT ON COLUMN public_pages.slug IS 'The name of the page in its path. It does not have to be that of apps.slug.';
COMMENT ON COLUMN public_pages.last_day IS 'The last day that is in the numbers, in the time zone of the application.';
COMMENT ON COLUMN public_pages.numbers IS
    'Rounded totals of 30, 90 and 365 days. Groups of fewer than 10 users are not contained.';
COMMENT ON COLUMN public_pages.computed_at IS 'If a user has been erased since then, the numbers are computed again.';
COMMENT ON INDEX public_pages_pkey IS 'Ensures that a path belongs to one application.';
COMMENT ON INDEX public_pages_app_id_org_id_key IS 'Ensures that an application is published once.';

-- Servers cache the pages, and discard the cache after this notification.

CREATE OR REPLACE FUNCTION tkserver_notify_public_pages() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('tkserver_public_pages', '');
    RETURN NULL;
END
$$;

DROP TRIGGER IF EXISTS public_pages_changed ON public_pages;
CREATE TRIGGER public_pages_changed
    AFTER INSERT OR DELETE OR TRUNCATE OR UPDATE
    ON public_pages
    FOR EACH STATEMENT EXECUTE FUNCTION tkserver_notify_public_pages();
