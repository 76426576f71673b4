-- Credentials: who may send events for which application.
--
-- Every statement of every migration may be run twice: a server that is killed between a migration and the note
-- that it was applied runs it again at the next start.

DO $$
BEGIN
    CREATE TYPE token_tier AS ENUM ('free', 'pro', 'business', 'enterprise');
EXCEPTION WHEN duplicate_object THEN
    NULL;
END
$$;

CREATE TABLE IF NOT EXISTS api_tokens (
    id           UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    org_id       UUID NOT NULL,
    app_id       UUID NOT NULL,
    token        VARCHAR(255) NOT NULL UNIQUE,
    secret       VARCHAR(255) NOT NULL,
    tier         token_tier NOT NULL DEFAULT 'free',
    is_active    BOOLEAN NOT NULL DEFAULT true,
    created_at   TIMESTAMPTZ NOT NULL DEFAULT now(),
    last_used_at TIMESTAMPTZ
);

COMMENT ON TABLE api_tokens IS 'Credentials. An application may have several active ones, for rotation with overlap.';
COMMENT ON COLUMN api_tokens.secret IS 'Key of the HMAC-SHA256 signatures: its own UTF-8 bytes.';
COMMENT ON COLUMN api_tokens.last_used_at IS 'To the minute; written now and then, not with each request.';

CREATE INDEX IF NOT EXISTS api_tokens_app_idx ON api_tokens (app_id);
COMMENT ON INDEX api_tokens_app_idx IS
    'The credentials of an application, for requests that carry a signature and no token.';
COMMENT ON INDEX api_tokens_pkey IS 'The credential whose last use is to be noted.';
COMMENT ON INDEX api_tokens_token_key IS 'The credential of a bearer token.';

-- Servers cache credentials, and forget them when this tells them to. Written as a trigger so that a change made by
-- anyone, by hand included, is heard. last_used_at alone is no reason to forget anything.

CREATE OR REPLACE FUNCTION tkserver_notify_credentials() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('tkserver_credentials', '');
    RETURN NULL;
END
$$;

DROP TRIGGER IF EXISTS api_tokens_changed ON api_tokens;
CREATE TRIGGER api_tokens_changed
    AFTER INSERT OR DELETE OR TRUNCATE OR UPDATE OF id, org_id, app_id, token, secret, tier, is_active
    ON api_tokens
    FOR EACH STATEMENT EXECUTE FUNCTION tkserver_notify_credentials();
