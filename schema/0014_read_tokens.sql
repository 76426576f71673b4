-- Tokens with which programs read statistics over HTTP, and the times when aggregates were last changed, from which the
-- ETags of statistics are derived (docs/insight.md).

CREATE TABLE IF NOT EXISTS read_tokens (
    id         UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    token_hash BYTEA NOT NULL UNIQUE CHECK (octet_length(token_hash) = 32),
    org_id     UUID,
    app_id     UUID,
    is_active  BOOLEAN NOT NULL DEFAULT true,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    CHECK ((org_id IS NULL) = (app_id IS NULL))
);

COMMENT ON TABLE read_tokens IS 'Tokens that allow to read statistics, and nothing else.';
COMMENT ON COLUMN read_tokens.token_hash IS
    'SHA-256 of the token. A token has 256 random bits, so a hash without a salt and without iterations is enough.';
COMMENT ON COLUMN read_tokens.app_id IS 'Together with org_id: the application. Both are NULL for all applications.';
COMMENT ON INDEX read_tokens_pkey IS 'Finds the token that is revoked.';
COMMENT ON INDEX read_tokens_token_hash_key IS 'Ensures that no two rows have the same token.';

-- Servers that serve statistics read the tokens every second, and after this notification, together with the names of
-- applications.

DROP TRIGGER IF EXISTS read_tokens_changed ON read_tokens;
CREATE TRIGGER read_tokens_changed
    AFTER INSERT OR DELETE OR TRUNCATE OR UPDATE ON read_tokens
    FOR EACH STATEMENT EXECUTE FUNCTION tkserver_notify_credentials();

ALTER TABLE insight_apps ADD COLUMN IF NOT EXISTS changed_at TIMESTAMPTZ NOT NULL DEFAULT now();
COMMENT ON COLUMN insight_apps.changed_at IS 'When the last transaction began that changed the aggregates.';

-- Every change of the events of an application changes the total of a day, and a change of first days changes the
-- number of new users. Conditions on rows are cheap; only the first change in a transaction writes.

CREATE OR REPLACE FUNCTION tkserver_insight_changed() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE insight_apps SET changed_at = now()
    WHERE app = coalesce(NEW.app, OLD.app) AND changed_at <> now();
    RETURN NULL;
END
$$;

DROP TRIGGER IF EXISTS insight_cells_changed ON insight_cells;
CREATE TRIGGER insight_cells_changed
    AFTER INSERT OR UPDATE ON insight_cells
    FOR EACH ROW WHEN (NEW.topic = 0 AND NEW.period = 1 AND NEW.segment < 2)
    EXECUTE FUNCTION tkserver_insight_changed();

DROP TRIGGER IF EXISTS insight_cells_deleted ON insight_cells;
CREATE TRIGGER insight_cells_deleted
    AFTER DELETE ON insight_cells
    FOR EACH ROW WHEN (OLD.topic = 0 AND OLD.period = 1 AND OLD.segment < 2)
    EXECUTE FUNCTION tkserver_insight_changed();

DROP TRIGGER IF EXISTS insight_first_days_changed ON insight_first_days;
CREATE TRIGGER insight_first_days_changed
    AFTER INSERT OR UPDATE OR DELETE ON insight_first_days
    FOR EACH ROW EXECUTE FUNCTION tkserver_insight_changed();
