-- Invalid events, with the reason why each of them was not stored. An operator can see them, and store them when the
-- reason no longer applies.

CREATE TABLE IF NOT EXISTS quarantine (
    id               BIGSERIAL PRIMARY KEY,
    org_id           UUID NOT NULL,
    app_id           UUID NOT NULL,
    key              UUID NOT NULL,
    event_id         UUID,
    request_id       VARCHAR(64) NOT NULL,
    batch_index      INTEGER NOT NULL,
    code             VARCHAR(50) NOT NULL,
    message          TEXT NOT NULL,
    sdk              VARCHAR(100),
    sdk_version      VARCHAR(100),
    user_id          VARCHAR(255),
    event            TEXT,
    bytes            BIGINT NOT NULL,
    times            BIGINT NOT NULL,
    received_at      TIMESTAMPTZ NOT NULL DEFAULT now(),
    last_received_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

COMMENT ON TABLE quarantine IS 'Invalid events, one row for each event, however often it was sent.';
COMMENT ON COLUMN quarantine.key IS
    'Identifies an event that is sent again: its id, or a hash of its text or of the reason if it has no id.';
COMMENT ON COLUMN quarantine.event_id IS 'NULL if the event has no valid id.';
COMMENT ON COLUMN quarantine.request_id IS 'The last request that contained the event.';
COMMENT ON COLUMN quarantine.batch_index IS 'The position of the event in that request, from 0.';
COMMENT ON COLUMN quarantine.code IS 'The error code, which the client has received, too.';
COMMENT ON COLUMN quarantine.user_id IS 'The user id in the text, if it is anonymous; otherwise the text has none.';
COMMENT ON COLUMN quarantine.event IS 'The JSON text; NULL if texts are not kept.';
COMMENT ON COLUMN quarantine.bytes IS 'The length of the text.';
COMMENT ON COLUMN quarantine.times IS 'How often the event was received.';

COMMENT ON INDEX quarantine_pkey IS 'Finds an event by its number.';

CREATE UNIQUE INDEX IF NOT EXISTS quarantine_key_idx ON quarantine (app_id, org_id, key);
COMMENT ON INDEX quarantine_key_idx IS 'Ensures that an event that is sent again is kept once.';

CREATE INDEX IF NOT EXISTS quarantine_received_idx ON quarantine (app_id, org_id, received_at, id);
COMMENT ON INDEX quarantine_received_idx IS 'Finds the oldest events of an application.';

CREATE INDEX IF NOT EXISTS quarantine_user_idx ON quarantine (app_id, user_id) WHERE user_id IS NOT NULL;
COMMENT ON INDEX quarantine_user_idx IS 'Finds the events of a user, for erasure.';

-- The size of the quarantine of each application. Everything that inserts or deletes quarantined events first locks the
-- row of the application, so that transactions do not wait for each other in a circle.

CREATE TABLE IF NOT EXISTS quarantine_usage (
    org_id  UUID NOT NULL,
    app_id  UUID NOT NULL,
    events  BIGINT NOT NULL DEFAULT 0,
    bytes   BIGINT NOT NULL DEFAULT 0,
    dropped BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (app_id, org_id)
);

COMMENT ON TABLE quarantine_usage IS 'The size of the quarantine of each application that has sent invalid events.';
COMMENT ON COLUMN quarantine_usage.dropped IS
    'The number of events that were deleted to make room for newer ones, since the first event.';
COMMENT ON INDEX quarantine_usage_pkey IS 'Finds the size of the quarantine of an application.';

CREATE OR REPLACE FUNCTION tkserver_count_quarantine() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO quarantine_usage AS u (app_id, org_id, events, bytes)
        SELECT a.app_id, a.org_id, count(*), sum(a.bytes) FROM added AS a
        GROUP BY a.app_id, a.org_id ORDER BY a.app_id, a.org_id
        ON CONFLICT (app_id, org_id) DO UPDATE
        SET events = u.events + excluded.events, bytes = u.bytes + excluded.bytes;
    ELSIF TG_OP = 'DELETE' THEN
        UPDATE quarantine_usage AS u SET events = u.events - r.events, bytes = u.bytes - r.bytes
        FROM (
            SELECT d.app_id, d.org_id, count(*) AS events, sum(d.bytes) AS bytes FROM deleted AS d
            GROUP BY d.app_id, d.org_id
        ) AS r
        WHERE u.app_id = r.app_id AND u.org_id = r.org_id;
    ELSE
        UPDATE quarantine_usage SET events = 0, bytes = 0;
    END IF;
    RETURN NULL;
END
$$;

DROP TRIGGER IF EXISTS quarantine_inserted ON quarantine;
CREATE TRIGGER quarantine_inserted AFTER INSERT ON quarantine REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION tkserver_count_quarantine();

DROP TRIGGER IF EXISTS quarantine_deleted ON quarantine;
CREATE TRIGGER quarantine_deleted AFTER DELETE ON quarantine REFERENCING OLD TABLE AS deleted
    FOR EACH STATEMENT EXECUTE FUNCTION tkserver_count_quarantine();

DROP TRIGGER IF EXISTS quarantine_truncated ON quarantine;
CREATE TRIGGER quarantine_truncated AFTER TRUNCATE ON quarantine
    FOR EACH STATEMENT EXECUTE FUNCTION tkserver_count_quarantine();

-- Deletes the oldest events of an application until the others are within the limits, and returns their number. The
-- time that this takes depends only on the number of deleted events.

CREATE OR REPLACE FUNCTION tkserver_trim_quarantine(of_org UUID, of_app UUID, max_events BIGINT, max_bytes BIGINT)
RETURNS BIGINT
LANGUAGE plpgsql AS $$
DECLARE
    excess_events BIGINT;
    excess_bytes  BIGINT;
    oldest        RECORD;
    trimmed       BIGINT[] := '{}';
BEGIN
    SELECT u.events - max_events, u.bytes - max_bytes INTO excess_events, excess_bytes
    FROM quarantine_usage AS u WHERE u.app_id = of_app AND u.org_id = of_org;
    IF excess_events > 0 OR excess_bytes > 0 THEN
        FOR oldest IN
            SELECT q.id, q.bytes FROM quarantine AS q WHERE q.app_id = of_app AND q.org_id = of_org
            ORDER BY q.received_at, q.id
        LOOP
            EXIT WHEN excess_events <= 0 AND excess_bytes <= 0;
            trimmed := trimmed || oldest.id;
            excess_events := excess_events - 1;
            excess_bytes := excess_bytes - oldest.bytes;
        END LOOP;
        DELETE FROM quarantine WHERE id = ANY (trimmed);
        UPDATE quarantine_usage SET dropped = dropped + cardinality(trimmed)
        WHERE app_id = of_app AND org_id = of_org;
    END IF;
    RETURN cardinality(trimmed);
END
$$;
