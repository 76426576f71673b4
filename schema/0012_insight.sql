-- Aggregates of events, from which statistics are computed (docs/insight.md).

CREATE TABLE IF NOT EXISTS insight_progress (
    id           BOOLEAN PRIMARY KEY DEFAULT true CHECK (id),
    definitions  INTEGER NOT NULL,
    watermark    BIGINT NOT NULL,
    summed_until TIMESTAMPTZ
);

COMMENT ON TABLE insight_progress IS 'One row. Whoever changes the aggregates locks it first.';
COMMENT ON COLUMN insight_progress.definitions IS 'Version of the definitions by which the aggregates were computed.';
COMMENT ON COLUMN insight_progress.watermark IS 'Events with ids up to this one are aggregated.';
COMMENT ON COLUMN insight_progress.summed_until IS 'Events that were received before this time are aggregated.';
COMMENT ON INDEX insight_progress_pkey IS 'Ensures that there is only one row.';

INSERT INTO insight_progress (definitions, watermark) VALUES (0, 0) ON CONFLICT (id) DO NOTHING;

CREATE TABLE IF NOT EXISTS insight_apps (
    app           INTEGER GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    org_id        UUID NOT NULL,
    app_id        UUID NOT NULL,
    timezone      TEXT NOT NULL DEFAULT 'UTC',
    watermark     BIGINT,
    frozen_before DATE NOT NULL DEFAULT '-infinity',
    next_user     INTEGER NOT NULL DEFAULT 0,
    UNIQUE (app_id, org_id)
);

COMMENT ON TABLE insight_apps IS 'Applications that have aggregates. The other tables refer to them by a small integer.';
COMMENT ON COLUMN insight_apps.timezone IS 'The time zone of the days.';
COMMENT ON COLUMN insight_apps.watermark IS
    'NULL, or, while the aggregates of this application are rebuilt, the id up to which its events are aggregated.';
COMMENT ON COLUMN insight_apps.frozen_before IS
    'Days before this one are frozen: events of these days may have been deleted, so nothing can be recomputed.';
COMMENT ON INDEX insight_apps_app_id_org_id_key IS 'Finds the integer of an application.';

CREATE TABLE IF NOT EXISTS insight_users (
    app       INTEGER NOT NULL REFERENCES insight_apps ON DELETE CASCADE,
    number    INTEGER NOT NULL,
    user_id   VARCHAR(255) NOT NULL,
    first_day DATE NOT NULL,
    last_day  DATE NOT NULL,
    PRIMARY KEY (app, user_id)
);

COMMENT ON TABLE insight_users IS 'Users of an application, numbered so that sets of users are small.';
COMMENT ON INDEX insight_users_pkey IS 'Finds the number of a user.';

CREATE TABLE IF NOT EXISTS insight_segments (
    app     INTEGER NOT NULL REFERENCES insight_apps ON DELETE CASCADE,
    segment INTEGER GENERATED ALWAYS AS IDENTITY (START WITH 100) PRIMARY KEY,
    ci      BOOLEAN NOT NULL,
    version TEXT NOT NULL,
    os      TEXT NOT NULL,
    arch    TEXT NOT NULL,
    UNIQUE (app, ci, version, os, arch)
);

COMMENT ON TABLE insight_segments IS 'Combinations of the values by which statistics are filtered.';
COMMENT ON INDEX insight_segments_app_ci_version_os_arch_key IS 'Finds a segment by its values.';

CREATE TABLE IF NOT EXISTS insight_items (
    app   INTEGER NOT NULL REFERENCES insight_apps ON DELETE CASCADE,
    item  INTEGER GENERATED ALWAYS AS IDENTITY (START WITH 100) PRIMARY KEY,
    topic SMALLINT NOT NULL,
    key   TEXT NOT NULL,
    UNIQUE (app, topic, key)
);

COMMENT ON TABLE insight_items IS 'Things that are counted, such as commands, flags and errors.';
COMMENT ON COLUMN insight_items.key IS 'A JSON array of texts. It contains "(other)" for what is too rare to be counted.';
COMMENT ON COLUMN insight_items.topic IS 'See tkserver/insight/cells.py.';
COMMENT ON INDEX insight_items_app_topic_key_key IS 'Finds an item by its key.';

CREATE TABLE IF NOT EXISTS insight_cells (
    app        INTEGER NOT NULL REFERENCES insight_apps ON DELETE CASCADE,
    period     SMALLINT NOT NULL,
    start      DATE NOT NULL,
    topic      SMALLINT NOT NULL,
    item       INTEGER NOT NULL,
    segment    INTEGER NOT NULL,
    events     INTEGER NOT NULL,
    outcomes   INTEGER NOT NULL,
    failures   INTEGER NOT NULL,
    user_count INTEGER NOT NULL,
    users      BYTEA,
    durations  BYTEA,
    last_times BYTEA,
    superseded BYTEA,
    PRIMARY KEY (app, topic, period, segment, start, item)
) WITH (fillfactor = 80);

COMMENT ON TABLE insight_cells IS 'Counts of events and sets of users, for one item, one segment, and one day or week.';
COMMENT ON COLUMN insight_cells.period IS 'Days: 1 or 7.';
COMMENT ON COLUMN insight_cells.start IS 'The first day of the period; weeks begin on Monday.';
COMMENT ON COLUMN insight_cells.segment IS '0: all without CI; 1: all of CI; otherwise a row of insight_segments.';
COMMENT ON COLUMN insight_cells.users IS 'A set of users as a roaring bitmap; NULL if the day is frozen.';
COMMENT ON COLUMN insight_cells.durations IS 'A histogram: see tkserver/insight/histograms.py.';
COMMENT ON COLUMN insight_cells.last_times IS 'Only of all events of a segment on a day: the time of each user''s last event.';
COMMENT ON COLUMN insight_cells.superseded IS
    'The users of this segment whose last event on this day has another version, and the same system and CI.';
COMMENT ON INDEX insight_cells_pkey IS 'Finds the cells of a period.';

CREATE TABLE IF NOT EXISTS insight_first_days (
    app        INTEGER NOT NULL REFERENCES insight_apps ON DELETE CASCADE,
    day        DATE NOT NULL,
    user_count INTEGER NOT NULL,
    users      BYTEA,
    PRIMARY KEY (app, day)
);

COMMENT ON TABLE insight_first_days IS 'The users whose first event was on this day.';
COMMENT ON COLUMN insight_first_days.users IS 'A set of users as a roaring bitmap; NULL if the day is frozen.';
COMMENT ON INDEX insight_first_days_pkey IS 'Finds the new users of a day.';

ALTER TABLE apps ADD COLUMN IF NOT EXISTS timezone TEXT NOT NULL DEFAULT 'UTC';
COMMENT ON COLUMN apps.timezone IS 'The time zone in which statistics divide time into days.';
