-- Counts by item and segment are stored as columns, one row for a topic on a day or in a week, instead of one row for each.

CREATE TABLE IF NOT EXISTS insight_details (
    app        INTEGER NOT NULL REFERENCES insight_apps ON DELETE CASCADE,
    topic      SMALLINT NOT NULL,
    period     SMALLINT NOT NULL,
    start      DATE NOT NULL,
    part       INTEGER NOT NULL,
    counts     BYTEA NOT NULL,
    users      BYTEA NOT NULL,
    histograms BYTEA NOT NULL,
    PRIMARY KEY (app, topic, period, start, part)
);

-- The time to decompress the contents would limit how many days can be read.
ALTER TABLE insight_details
    ALTER counts SET STORAGE EXTERNAL, ALTER users SET STORAGE EXTERNAL, ALTER histograms SET STORAGE EXTERNAL;

-- Each aggregation replaces rows, so that a fifth of dead rows, the default, would be too many.
ALTER TABLE insight_cells SET (autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE insight_details SET (autovacuum_vacuum_scale_factor = 0.05, toast.autovacuum_vacuum_scale_factor = 0.05);

COMMENT ON TABLE insight_details IS 'Counts of events by item and segment, in columns: see tkserver/insight/groups.py.';
COMMENT ON COLUMN insight_details.period IS 'Days: 1 or 7.';
COMMENT ON COLUMN insight_details.start IS 'The first day of the period; weeks begin on Monday.';
COMMENT ON COLUMN insight_details.part IS 'The parts of a period are added to each other.';
COMMENT ON COLUMN insight_details.counts IS 'The numbers of events, outcomes, failures and users by item and segment.';
COMMENT ON COLUMN insight_details.users IS 'The users by item and segment; empty if the day is frozen.';
COMMENT ON COLUMN insight_details.histograms IS 'Histograms of durations by item and segment.';
COMMENT ON INDEX insight_details_pkey IS 'Finds the details of a period.';
