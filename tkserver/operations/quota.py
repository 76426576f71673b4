"""Monthly quotas of applications."""

from __future__ import annotations

from tkserver.operations.apps import update_setting
from tkserver.operations.models import App
from tkserver.operations.paced import Sleep
from tkserver.storage.blocking import Connection, rows
from tkserver.storage.changes import PROPAGATION_TIME

MAX_QUOTA = 2**63 - 1
"""Events: the largest value of the database column."""

_RECOUNT = """
UPDATE apps SET quota_used = greatest(quota_used, tkserver_stored_this_month(org_id, app_id))
WHERE app_id = %s AND org_id = %s AND quota_month = (date_trunc('month', now() AT TIME ZONE 'UTC'))::date
"""


def set_quota(connection: Connection, app: App, quota: int | None, sleep: Sleep) -> None:
    """Limit the number of events that an application can store in a calendar month (UTC).

    Events that it has already stored this month count. If it had no quota before, the database counts them, which may
    take a while. Servers that do not know about the quota yet store events without counting them; therefore this
    function waits until all servers know about it, and counts again.

    :param quota: ``None`` removes the limit.
    :raise UnnamedApplication: if the application has no name.
    """
    update_setting(connection, app, "monthly_quota", quota)
    if app.monthly_quota is None and quota is not None:
        sleep(PROPAGATION_TIME)
        rows(connection, _RECOUNT, *app.key)
