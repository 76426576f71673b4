-- A row that the readiness check writes: a server is ready if it can write to the database.

CREATE TABLE IF NOT EXISTS readiness (
    id         BOOLEAN PRIMARY KEY DEFAULT true CHECK (id),
    checked_at TIMESTAMPTZ NOT NULL
);

COMMENT ON TABLE readiness IS 'One row, which GET /health/ready writes.';
COMMENT ON INDEX readiness_pkey IS 'Ensures that there is only one row.';
