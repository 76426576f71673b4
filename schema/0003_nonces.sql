-- Nonces of stored requests. A request that is captured and sent again is recognised while its timestamp is still
-- within the window; a nonce is written in the same transaction as the events that it came with.

CREATE TABLE IF NOT EXISTS nonces (
    org_id  UUID NOT NULL,
    app_id  UUID NOT NULL,
    nonce   VARCHAR(128) NOT NULL,
    used_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (app_id, org_id, nonce)
);

COMMENT ON TABLE nonces IS 'Nonces of requests that were stored in the last 20 minutes, and some older ones.';
COMMENT ON INDEX nonces_pkey IS 'Whether a nonce was used.';

CREATE INDEX IF NOT EXISTS nonces_used_at_idx ON nonces (used_at);
COMMENT ON INDEX nonces_used_at_idx IS 'Those that can be forgotten.';
