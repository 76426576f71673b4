-- Credentials with which programs send events for an application.
--
-- All migrations can be applied twice: if a server is killed after it has applied a migration and before it has
-- recorded that, the next start applies the migration again.

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

COMMENT ON TABLE api_tokens IS 'Credentials. During a rotation, an application has several active ones.';
COMMENT ON COLUMN api_tokens.secret IS 'Key of the HMAC-SHA256 signatures: the UTF-8 encoding of this text.';
COMMENT ON COLUMN api_tokens.last_used_at IS 'Accurate to about a minute, because it is not written with each request.';

CREATE INDEX IF NOT EXISTS api_tokens_app_idx ON api_tokens (app_id);
COMMENT ON INDEX api_tokens_app_idx IS
    'Finds the credentials of an application, for requests with a signature and without a token.';
COMMENT ON INDEX api_tokens_pkey IS 'Finds the credential whose last use is written.';
COMMENT ON INDEX api_tokens_token_key IS 'Finds the credential of a bearer token.';

-- Servers cache credentials, and discard the cache after this notification. A trigger sends it, so that servers also
-- notice changes that are made by hand. A change of last_used_at sends none.

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
