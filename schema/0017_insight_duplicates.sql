-- The number of events that were sent again, which otherwise leave no trace.

CREATE TABLE IF NOT EXISTS insight_duplicates (
    org_id UUID NOT NULL,
    app_id UUID NOT NULL,
    day    DATE NOT NULL,
    events BIGINT NOT NULL,
    PRIMARY KEY (app_id, org_id, day)
);

COMMENT ON TABLE insight_duplicates IS
    'Duplicates by the day on which they were received. Servers add the numbers every 30 seconds.';
COMMENT ON COLUMN insight_duplicates.day IS 'In the time zone that the application had at that time.';
COMMENT ON INDEX insight_duplicates_pkey IS 'Finds the number of an application and a day.';
