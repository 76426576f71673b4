-- Users whose events were erased and must not be stored anymore. Their ids must not be stored either, so users are
-- identified by a hash, whose key is different in each installation.

CREATE TABLE IF NOT EXISTS erasure_key (
    id  BOOLEAN PRIMARY KEY DEFAULT true CHECK (id),
    key BYTEA NOT NULL CHECK (octet_length(key) = 32)
);

COMMENT ON TABLE erasure_key IS
    'One row: the key of erasures.user_hash. It must never change, because all erasures would lose their effect.';
COMMENT ON COLUMN erasure_key.key IS '32 bytes, derived from 244 random bits.';
COMMENT ON INDEX erasure_key_pkey IS 'Ensures that there is only one row.';

INSERT INTO erasure_key (key)
VALUES (sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())))
ON CONFLICT (id) DO NOTHING;

CREATE TABLE IF NOT EXISTS erasures (
    user_hash BYTEA NOT NULL CHECK (octet_length(user_hash) = 32),
    org_id    UUID,
    app_id    UUID,
    erased_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    CHECK ((org_id IS NULL) = (app_id IS NULL))
);

COMMENT ON TABLE erasures IS 'Users whose events are accepted and not stored.';
COMMENT ON COLUMN erasures.user_hash IS 'HMAC-SHA256 of the UTF-8 encoding of the user id.';
COMMENT ON COLUMN erasures.app_id IS 'Together with org_id: the application. Both are NULL for all applications.';

CREATE UNIQUE INDEX IF NOT EXISTS erasures_everywhere_idx ON erasures (user_hash) WHERE app_id IS NULL;
COMMENT ON INDEX erasures_everywhere_idx IS 'Ensures that there is one erasure of a user from all applications.';

CREATE UNIQUE INDEX IF NOT EXISTS erasures_app_idx ON erasures (user_hash, app_id, org_id) WHERE app_id IS NOT NULL;
COMMENT ON INDEX erasures_app_idx IS 'Ensures that there is one erasure of a user from an application.';

-- Servers cache the erased users, and discard the cache after this notification.

CREATE OR REPLACE FUNCTION tkserver_notify_erasures() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('tkserver_erasures', '');
    RETURN NULL;
END
$$;

DROP TRIGGER IF EXISTS erasures_changed ON erasures;
CREATE TRIGGER erasures_changed
    AFTER INSERT OR DELETE OR TRUNCATE OR UPDATE ON erasures
    FOR EACH STATEMENT EXECUTE FUNCTION tkserver_notify_erasures();
