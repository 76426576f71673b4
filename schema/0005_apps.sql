-- Names and settings of applications, and credentials that expire.
--
-- An application needs no row in this table to send events, only credentials.

CREATE TABLE IF NOT EXISTS apps (
    org_id         UUID NOT NULL,
    app_id         UUID NOT NULL,
    name           VARCHAR(100) NOT NULL UNIQUE CHECK (name <> ''),
    created_at     TIMESTAMPTZ NOT NULL DEFAULT now(),
    monthly_quota  BIGINT CHECK (monthly_quota >= 0),
    retention_days INTEGER CHECK (retention_days > 0),
    PRIMARY KEY (app_id, org_id)
);

COMMENT ON TABLE apps IS 'Names and settings of applications.';
COMMENT ON COLUMN apps.monthly_quota IS
    'Maximum number of events that are stored in a calendar month (UTC); NULL for no limit.';
COMMENT ON COLUMN apps.retention_days IS 'Days after which events are deleted; NULL for the setting of the servers.';
COMMENT ON INDEX apps_pkey IS 'Finds the settings of an application.';
COMMENT ON INDEX apps_name_key IS 'Finds an application by its name.';

ALTER TABLE api_tokens ADD COLUMN IF NOT EXISTS expires_at TIMESTAMPTZ;
COMMENT ON COLUMN api_tokens.expires_at IS 'When the credential becomes inactive; NULL for never. A rotation sets it.';

DROP TRIGGER IF EXISTS api_tokens_changed ON api_tokens;
CREATE TRIGGER api_tokens_changed
    AFTER INSERT OR DELETE OR TRUNCATE
    OR UPDATE OF id, org_id, app_id, token, secret, tier, is_active, expires_at
    ON api_tokens
    FOR EACH STATEMENT EXECUTE FUNCTION tkserver_notify_credentials();
