-- The readiness probe's one row: a server is ready when it can write, and the way to know is to write.

CREATE TABLE IF NOT EXISTS readiness (
    id         BOOLEAN PRIMARY KEY DEFAULT true CHECK (id),
    checked_at TIMESTAMPTZ NOT NULL
);

COMMENT ON TABLE readiness IS 'One row, written by GET /health/ready.';
COMMENT ON INDEX readiness_pkey IS 'That there is one row only.';
