-- Nonces of stored requests, to reject a request that an attacker has captured and sends again while its timestamp is
-- still valid. A nonce is written in the same transaction as the events of its request.

CREATE TABLE IF NOT EXISTS nonces (
    org_id  UUID NOT NULL,
    app_id  UUID NOT NULL,
    nonce   VARCHAR(128) NOT NULL,
    used_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (app_id, org_id, nonce)
);

COMMENT ON TABLE nonces IS
    'Nonces of requests that were stored in the last 20 minutes, and older ones that are not deleted yet.';
COMMENT ON INDEX nonces_pkey IS 'Finds out whether a nonce was used.';

CREATE INDEX IF NOT EXISTS nonces_used_at_idx ON nonces (used_at);
COMMENT ON INDEX nonces_used_at_idx IS 'Finds old nonces, which are deleted.';
