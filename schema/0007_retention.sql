-- What is too old in an application, and which applications there are, by an index.
--
-- transactional: false
--
-- The table may be big, and older servers may be writing to it meanwhile: the index is made beside them. That takes
-- no transaction, and where it is interrupted it leaves an index that is of no use and in the way of another try.

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('events_retention_idx') AND NOT indisvalid) THEN
        DROP INDEX events_retention_idx;
    END IF;
END
$$;

CREATE INDEX CONCURRENTLY IF NOT EXISTS events_retention_idx ON events (app_id, org_id, received_at);

COMMENT ON INDEX events_retention_idx IS 'What was received in an application before a time, and which applications there are.';
