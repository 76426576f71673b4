-- Names for applications, and what is set for each of them; and credentials that end by themselves.
--
-- An application needs no row here to send events: its credentials are enough.

CREATE TABLE IF NOT EXISTS apps (
    org_id         UUID NOT NULL,
    app_id         UUID NOT NULL,
    name           VARCHAR(100) NOT NULL UNIQUE CHECK (name <> ''),
    created_at     TIMESTAMPTZ NOT NULL DEFAULT now(),
    monthly_quota  BIGINT CHECK (monthly_quota >= 0),
    retention_days INTEGER CHECK (retention_days > 0),
    PRIMARY KEY (app_id, org_id)
);

COMMENT ON TABLE apps IS 'Names of applications, and what is set for each.';
COMMENT ON COLUMN apps.monthly_quota IS 'Events that may be stored in a calendar month, UTC; NULL for any number.';
COMMENT ON COLUMN apps.retention_days IS 'Days for which events are kept; NULL for what the servers'' settings say.';
COMMENT ON INDEX apps_pkey IS 'What is set for an application.';
COMMENT ON INDEX apps_name_key IS 'The application that an operator names.';

ALTER TABLE api_tokens ADD COLUMN IF NOT EXISTS expires_at TIMESTAMPTZ;
COMMENT ON COLUMN api_tokens.expires_at IS 'From when on it is no longer active; NULL for never. Set by a rotation.';

DROP TRIGGER IF EXISTS api_tokens_changed ON api_tokens;
CREATE TRIGGER api_tokens_changed
    AFTER INSERT OR DELETE OR TRUNCATE
    OR UPDATE OF id, org_id, app_id, token, secret, tier, is_active, expires_at
    ON api_tokens
    FOR EACH STATEMENT EXECUTE FUNCTION tkserver_notify_credentials();
