-- Smaller indexes of events by time. Only export and the deletion of old events use them.
--
-- transactional: false
--
-- The table may be large, and servers of an older version may write to it at the same time, so indexes are built and
-- dropped concurrently. That is not possible in a transaction. If the build is interrupted, it leaves an invalid index,
-- which must be dropped before the next attempt.

DO $$
DECLARE
    invalid NAME;
BEGIN
    FOR invalid IN
        SELECT c.relname FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
        WHERE i.indrelid = 'events'::regclass AND NOT i.indisvalid
            AND c.relname IN ('events_app_hour_idx', 'events_timestamp_idx')
    LOOP
        EXECUTE format('DROP INDEX %I', invalid);
    END LOOP;
END
$$;

-- Events have few different hours, and a B-tree stores each key once. The expression must be the same as HOUR in
-- tkserver/storage/arrivals.py.

CREATE INDEX CONCURRENTLY IF NOT EXISTS events_app_hour_idx
    ON events (app_id, org_id, date_bin('1 hour', received_at, '2000-01-01 00:00:00+00'));

COMMENT ON INDEX events_app_hour_idx IS
    'Finds old events of an application, to the hour, and all applications that have events.';

-- Most events are received soon after they happened, so events of the same time are close to each other. Each range of
-- blocks has several intervals, so that events which arrive late do not make it match all times.

CREATE INDEX CONCURRENTLY IF NOT EXISTS events_timestamp_idx
    ON events USING brin (timestamp timestamptz_minmax_multi_ops) WITH (pages_per_range = 64, autosummarize = on);

COMMENT ON INDEX events_timestamp_idx IS 'Finds events in a period of time, for export.';

-- Ids are inserted almost in order, so pages need little free space: enough for ids that concurrent transactions insert
-- late. With 100, each of these would split a full page.

ALTER INDEX events_pkey SET (fillfactor = 97);

-- PostgreSQL has no statistics about the hours yet.

ANALYZE events;

DROP INDEX CONCURRENTLY IF EXISTS events_app_timestamp_idx;

DROP INDEX CONCURRENTLY IF EXISTS events_retention_idx;

-- Months begin at full hours.

CREATE OR REPLACE FUNCTION tkserver_stored_this_month(of_org UUID, of_app UUID) RETURNS BIGINT
LANGUAGE sql AS $$
    SELECT count(*) FROM events
    WHERE app_id = of_app AND org_id = of_org
        AND date_bin('1 hour', received_at, '2000-01-01 00:00:00+00') >= date_trunc('month', now(), 'UTC')
$$;
