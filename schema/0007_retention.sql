-- An index to find old events of an application, and all applications that have events.
--
-- transactional: false
--
-- The table may be large, and servers of an older version may write to it at the same time, so the index is built
-- concurrently. That is not possible in a transaction. If the build is interrupted, it leaves an invalid index, which
-- must be dropped before the next attempt.

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('events_retention_idx') AND NOT indisvalid) THEN
        DROP INDEX events_retention_idx;
    END IF;
END
$$;

CREATE INDEX CONCURRENTLY IF NOT EXISTS events_retention_idx ON events (app_id, org_id, received_at);

COMMENT ON INDEX events_retention_idx IS 'Finds old events of an application, and all applications that have events.';
