"""The numbers of public pages: computed once a day, and again if a user has been erased.

:mod:`tkserver.storage.public_pages` describes the table.
"""

from __future__ import annotations

import json
from datetime import date, datetime, timedelta

from tkserver.insight.catalog import read_version
from tkserver.insight.public_numbers import PANELS, PERIODS, Json, public_numbers
from tkserver.insight.stats import compute_parts, snapshot
from tkserver.storage.blocking import Connection, rows, transaction

ERASURE_SECONDS = 30
"""Seconds after which an erasure is in all numbers."""

_DUE = """
SELECT p.app_id::text, p.org_id::text
FROM public_pages AS p JOIN apps AS a USING (app_id, org_id) LEFT JOIN insight_apps AS i USING (app_id, org_id)
WHERE p.last_day <> (%s AT TIME ZONE coalesce(i.timezone, a.timezone, 'UTC'))::date - 1
    OR EXISTS (
        SELECT FROM erasures AS e
        WHERE e.erased_at BETWEEN p.computed_at - %s AND %s
            AND (e.app_id IS NULL OR (e.app_id, e.org_id) = (p.app_id, p.org_id))
    )
"""

_UPDATE = """
UPDATE public_pages SET last_day = %s, numbers = %s, computed_at = %s WHERE app_id = %s AND org_id = %s
"""


def compute(connection: Connection, app_id: str, org_id: str, now: datetime) -> tuple[date, Json]:
    """Return the day before today, in the time zone of an application, and the public numbers up to that day."""
    version = read_version(connection, app_id, org_id)
    assert version is not None, "only an application with a name has a public page"
    last = version.app.today(now) - timedelta(1)

    def panel(name: str, days: int) -> Json:
        parameters = {"from": str(last - timedelta(days - 1)), "to": str(last)}
        return compute_parts(connection, app_id, org_id, "", name, parameters, now)[1]

    with snapshot(connection):
        periods = {days: {name: panel(name, days) for name in PANELS} for days in PERIODS}
    return last, public_numbers(periods)


def update_due(connection: Connection, now: datetime) -> int:
    """Compute the numbers of all pages whose numbers are not current, and return how many there were."""
    settled = timedelta(seconds=ERASURE_SECONDS)
    due = rows(connection, _DUE, now, settled, now - settled)
    for app_id, org_id in due:
        last, numbers = compute(connection, app_id, org_id, now)
        with transaction(connection):
            rows(connection, _UPDATE, last, json.dumps(numbers), now, app_id, org_id)
    return len(due)
