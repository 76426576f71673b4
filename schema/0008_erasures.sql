-- Users whose events were erased and are not to be stored any more. Not by their ids, which are to be forgotten: by
-- a hash whose key is this installation's own.

CREATE TABLE IF NOT EXISTS erasure_key (
    id  BOOLEAN PRIMARY KEY DEFAULT true CHECK (id),
    key BYTEA NOT NULL CHECK (octet_length(key) = 32)
);

COMMENT ON TABLE erasure_key IS 'One row: the key of erasures.user_hash. Never changes, or erasures would be forgotten.';
COMMENT ON COLUMN erasure_key.key IS '32 bytes, made of 244 random bits.';
COMMENT ON INDEX erasure_key_pkey IS 'That there is one row only.';

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

COMMENT ON TABLE erasures IS 'Users whose events are answered as accepted and not stored.';
COMMENT ON COLUMN erasures.user_hash IS 'HMAC-SHA256 of the user id''s UTF-8 bytes.';
COMMENT ON COLUMN erasures.app_id IS 'And org_id: for which application; both NULL for all.';

CREATE UNIQUE INDEX IF NOT EXISTS erasures_everywhere_idx ON erasures (user_hash) WHERE app_id IS NULL;
COMMENT ON INDEX erasures_everywhere_idx IS 'A user is erased from all applications once.';

CREATE UNIQUE INDEX IF NOT EXISTS erasures_app_idx ON erasures (user_hash, app_id, org_id) WHERE app_id IS NOT NULL;
COMMENT ON INDEX erasures_app_idx IS 'A user is erased from an application once.';

-- Servers remember who was erased, and look again when this tells them to.

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
