-- A nonce is deleted only when the timestamp of its request can no longer be valid. Therefore the table contains the
-- timestamp, which the client chooses within the tolerance, instead of relying on the time when the request was stored.

-- Servers of an older version insert no timestamp. It was valid, so it was at most their tolerance in the future.
ALTER TABLE nonces ADD COLUMN IF NOT EXISTS sent_at TIMESTAMPTZ NOT NULL DEFAULT now() + interval '10 minutes';

COMMENT ON TABLE nonces IS
    'Nonces of stored requests whose timestamp may still be valid, and older ones that are not deleted yet.';
COMMENT ON COLUMN nonces.sent_at IS 'Timestamp of the request, by the clock of the client.';
COMMENT ON COLUMN nonces.used_at IS 'When the request was stored, by the clock of this database.';

CREATE INDEX IF NOT EXISTS nonces_sent_at_idx ON nonces (sent_at);
COMMENT ON INDEX nonces_sent_at_idx IS 'Finds old nonces, which are deleted.';
DROP INDEX IF EXISTS nonces_used_at_idx;

CREATE TABLE IF NOT EXISTS nonce_window (
    id            BOOLEAN PRIMARY KEY DEFAULT true CHECK (id),
    tolerance     INTEGER NOT NULL CHECK (tolerance >= 0),
    renewed_at    TIMESTAMPTZ NOT NULL,
    deleted_until TIMESTAMPTZ NOT NULL
);

COMMENT ON TABLE nonce_window IS 'One row: which nonces are in the table nonces.';
COMMENT ON COLUMN nonce_window.tolerance IS
    'The largest TK__INGEST__TIMESTAMP_TOLERANCE of the servers that ran in the last day.';
COMMENT ON COLUMN nonce_window.renewed_at IS 'When a server with this tolerance last deleted old nonces.';
COMMENT ON COLUMN nonce_window.deleted_until IS
    'The newest timestamp of a deleted nonce. Requests with a nonce and this timestamp or an older one are rejected,'
    ' because their nonces may have been used.';
COMMENT ON INDEX nonce_window_pkey IS 'Ensures that there is only one row.';

INSERT INTO nonce_window (tolerance, renewed_at, deleted_until) VALUES (0, now(), '-infinity') ON CONFLICT DO NOTHING;
