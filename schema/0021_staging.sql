-- Applications whose events are only for tests, until they are promoted.

ALTER TABLE apps ADD COLUMN IF NOT EXISTS staging BOOLEAN NOT NULL DEFAULT false;
COMMENT ON COLUMN apps.staging IS 'True for tests: tkserver apps promote deletes the events and lifts the limits.';
