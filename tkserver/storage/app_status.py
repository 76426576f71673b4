"""The status of applications at this moment: last event, quota, and quarantine. All statements use indexes."""

from __future__ import annotations

from tkserver.storage.arrivals import HOUR

RECENT_DAYS = 7
"""The days of which quarantined events are counted."""

MAX_COUNTED = 1000
"""The number up to which they are counted, so that the status of many applications is known soon."""

STATUS = f"""
SELECT a.app_id::text, a.org_id::text,
    (
        SELECT max(received_at) FROM (
            SELECT received_at FROM events AS e WHERE e.app_id = a.app_id AND e.org_id = a.org_id
            ORDER BY {HOUR} DESC LIMIT 100
        ) AS latest
    ),
    p.monthly_quota, p.quota_month, p.quota_used, now(),
    (
        SELECT count(*) FROM (
            SELECT FROM quarantine AS q
            WHERE q.app_id = a.app_id AND q.org_id = a.org_id
                AND q.received_at >= now() - make_interval(days => {RECENT_DAYS})
            LIMIT {MAX_COUNTED}
        ) AS recent
    )
FROM unnest(%s::uuid[], %s::uuid[]) AS a (app_id, org_id) LEFT JOIN apps AS p USING (app_id, org_id)
"""
"""Selects the ids of applications, the time of the last event, the columns of the quota, the current time, and the
number of events that were quarantined in the last :data:`RECENT_DAYS`.

The parameters are the ids of applications and those of their organizations. Of the events of the last hour with events,
only those are read that are stored last in the table, because there may be many. The time of the last event can
therefore be a little too early if the table has gaps from deleted events.
"""

LATEST_QUARANTINED = """
SELECT received_at, code, message, times, CASE WHEN bytes <= %s THEN event END
FROM quarantine WHERE app_id = %s AND org_id = %s ORDER BY received_at DESC, id DESC LIMIT %s
"""
"""Selects the latest quarantined events of an application: time, code, message, how often it was received, and the text
if it is not longer than the first parameter.
"""
