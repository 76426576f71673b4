"""The SQL statements that store events.

The store statement takes all requests as one JSON document of nested arrays: a request contains origins, and an origin
contains events (see :class:`~tkserver.storage.events.Row`). PostgreSQL parses it about as fast as any other format that
needs only one round trip.

The statement returns only exceptions: a row (request, null, null) for each request whose nonce was used before, or may
have been used and deleted; and a row (request, event id, true if the event belongs to this application) for each event
that was not inserted. Under REPEATABLE READ, the statement either sees the existing row with the same event id, or it
fails and is retried.

Usually there are no exceptions. If the number of inserted rows equals the number of sent events, no row is compared.
"""

from __future__ import annotations

CLOCK_MARGIN = 60
"""Seconds for which a nonce is kept after its timestamp has become invalid, by the clock of the database.

If the clock of the database is ahead of the server's by more than this, requests with the oldest timestamps get a 409.
Whatever the clocks show, no request is stored twice.
"""

_STATEMENT = """
PREPARE tkserver_store (jsonb) AS
WITH request AS MATERIALIZED (
    SELECT n AS request, (r->>0)::uuid AS org_id, (r->>1)::uuid AS app_id, r->>2 AS nonce,
           to_timestamp((r->>3)::bigint) AS sent_at, r->4 AS origins
    FROM jsonb_array_elements($1) WITH ORDINALITY AS t (r, n)
), accepted AS MATERIALIZED (
    SELECT * FROM request AS r
    WHERE r.nonce IS NULL OR (
        (r.sent_at <= (SELECT deleted_until FROM nonce_window WHERE id)) IS NOT TRUE
        AND (  -- for NOT EXISTS, PostgreSQL would read and hash all nonces
            SELECT true FROM nonces AS n WHERE n.app_id = r.app_id AND n.org_id = r.org_id AND n.nonce = r.nonce
        ) IS NULL
    )
), origin AS MATERIALIZED (
    SELECT
        f.request, f.org_id, f.app_id, o->>0 AS schema_version,
        o->>1 AS service_name, o->>2 AS service_version, o->>3 AS service_language, o->>4 AS service_language_version,
        o->>5 AS user_id, o->>6 AS session_id,
        o->>7 AS os, o->>8 AS os_version, o->>9 AS arch, (o->>10)::boolean AS ci, o->>11 AS shell,
        o->>12 AS sdk_version, o->13 AS events
    FROM accepted AS f, jsonb_array_elements(f.origins) AS o
), incoming AS MATERIALIZED (
    SELECT  -- o.* would repeat the whole events array in each row
        request, org_id, app_id, schema_version,
        service_name, service_version, service_language, service_language_version,
        user_id, session_id, os, os_version, arch, ci, shell, sdk_version,
        (e->>0)::uuid AS event_id, e
    FROM origin AS o, jsonb_array_elements(o.events) AS e
), stored AS (
    INSERT INTO events (
        org_id, app_id, event_id, schema_version, timestamp,
        service_name, service_version, service_language, service_language_version,
        user_id, session_id, os, os_version, arch, ci, shell,
        event_type, event_category, event_data,
        sdk_version, transmission_timestamp, batch_size, retry_count
    )
    SELECT
        org_id, app_id, event_id, schema_version, (e->>1)::timestamptz,
        service_name, service_version, service_language, service_language_version,
        user_id, session_id, os, os_version, arch, ci, shell,
        e->>2, e->>3, e->4,
        sdk_version, (e->>5)::timestamptz, (e->>6)::int, (e->>7)::int
    FROM incoming
    ORDER BY event_id, request
    ON CONFLICT (event_id) DO NOTHING
    RETURNING event_id, org_id, app_id
), totals AS MATERIALIZED (
    SELECT (SELECT count(*) FROM stored) = (SELECT count(*) FROM incoming) AS all_stored
), not_stored AS MATERIALIZED (
    SELECT i.request, i.event_id, coalesce((
        SELECT (o.org_id, o.app_id) = (i.org_id, i.app_id) FROM events AS o WHERE o.event_id = i.event_id
    ), false) AS is_own
    FROM incoming AS i
    WHERE NOT (SELECT all_stored FROM totals) AND NOT EXISTS (
        SELECT FROM stored AS s
        WHERE s.event_id = i.event_id AND s.org_id = i.org_id AND s.app_id = i.app_id
    )
), used_nonces AS (
    INSERT INTO nonces (org_id, app_id, nonce, sent_at)
    SELECT f.org_id, f.app_id, f.nonce, f.sent_at FROM accepted AS f
    WHERE f.nonce IS NOT NULL AND ((SELECT all_stored FROM totals) OR f.request IN (
        SELECT i.request FROM incoming AS i LEFT JOIN not_stored AS m USING (request, event_id)
        WHERE m.is_own IS DISTINCT FROM false
    ))
    ON CONFLICT (app_id, org_id, nonce) DO UPDATE SET used_at = excluded.used_at, sent_at = excluded.sent_at
)
SELECT r.request, NULL::text, NULL::boolean FROM request AS r
WHERE r.request NOT IN (SELECT f.request FROM accepted AS f)
UNION ALL
SELECT m.request, m.event_id::text, m.is_own FROM not_stored AS m
"""

PREPARE_STORE = (
    # Planning takes as long as storing a few events, so the statement is planned once for each connection. The tables
    # may be empty at that time. PostgreSQL would then choose sequential scans, which become slow as the tables grow.
    "SET plan_cache_mode = force_generic_plan",
    "SET enable_seqscan = off",
    "SET standard_conforming_strings = on",  # for JsonLiteral
    _STATEMENT,
)
"""Statements that prepare a connection for :class:`~tkserver.storage.event_store.EventStore`."""

STORE = "EXECUTE tkserver_store (%s)"
"""Store requests, and return the exceptions."""

RENEW_TOLERANCE = """
UPDATE nonce_window SET
    tolerance = CASE WHEN tolerance <= %s OR renewed_at < now() - interval '1 day' THEN %s ELSE tolerance END,
    renewed_at = CASE WHEN tolerance <= %s OR renewed_at < now() - interval '1 day' THEN now() ELSE renewed_at END
"""
"""Register the tolerance of a server, and lock the row, so that one server at a time deletes nonces."""

DELETE_OLD_NONCES = f"""
WITH deleted AS (
    DELETE FROM nonces
    WHERE sent_at < now() - make_interval(secs => (SELECT tolerance + {CLOCK_MARGIN} FROM nonce_window))
    RETURNING sent_at
)
UPDATE nonce_window SET deleted_until = greatest(deleted_until, (SELECT max(sent_at) FROM deleted))
WHERE EXISTS (SELECT FROM deleted)
"""
"""Delete the nonces whose timestamps are no longer valid for any server."""

PROBE = """
INSERT INTO readiness (checked_at) VALUES (now()) ON CONFLICT (id) DO UPDATE SET checked_at = excluded.checked_at
"""
"""Write one row, to check that the database accepts writes."""
