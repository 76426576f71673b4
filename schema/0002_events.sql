-- Events as the SDKs sent them, one row for each event.

CREATE TABLE IF NOT EXISTS events (
    id                       BIGSERIAL PRIMARY KEY,
    event_id                 UUID NOT NULL UNIQUE,
    org_id                   UUID NOT NULL,
    app_id                   UUID NOT NULL,
    schema_version           VARCHAR(20) NOT NULL,
    timestamp                TIMESTAMPTZ NOT NULL,
    service_name             VARCHAR(255) NOT NULL,
    service_version          VARCHAR(100) NOT NULL,
    service_language         VARCHAR(50) NOT NULL,
    service_language_version VARCHAR(50),
    user_id                  VARCHAR(255) NOT NULL,
    session_id               VARCHAR(255),
    os                       VARCHAR(50) NOT NULL,
    os_version               VARCHAR(100),
    arch                     VARCHAR(50),
    ci                       BOOLEAN,
    shell                    VARCHAR(50),
    event_type               VARCHAR(100) NOT NULL,
    event_category           VARCHAR(50),
    event_data               JSONB NOT NULL,
    sdk_version              VARCHAR(50) NOT NULL,
    transmission_timestamp   TIMESTAMPTZ NOT NULL,
    batch_size               INTEGER NOT NULL,
    retry_count              INTEGER NOT NULL,
    received_at              TIMESTAMPTZ NOT NULL DEFAULT now()
);

COMMENT ON TABLE events IS 'Events as the SDKs sent them. Each event is stored once.';
COMMENT ON COLUMN events.timestamp IS 'When the event happened, by the clock of the client.';
COMMENT ON COLUMN events.received_at IS 'When the event was stored, by the clock of this database.';
COMMENT ON COLUMN events.user_id IS 'Anonymous id: begins with client_ or anon_.';

COMMENT ON INDEX events_pkey IS 'Order of arrival, for reading the table in parts.';
COMMENT ON INDEX events_event_id_key IS 'Ensures that an event that is sent again is stored once.';

CREATE INDEX IF NOT EXISTS events_app_timestamp_idx ON events (app_id, timestamp);
COMMENT ON INDEX events_app_timestamp_idx IS 'Finds the events of an application in a period of time.';

CREATE INDEX IF NOT EXISTS events_app_user_idx ON events (app_id, user_id);
COMMENT ON INDEX events_app_user_idx IS 'Finds the events of a user, for export and erasure.';
