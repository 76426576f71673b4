"""Statistics of an application: a panel, with the facts that every panel states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from tkserver.insight.catalog import rfc3339
from tkserver.insight.cells import WITH_CI, WITHOUT_CI
from tkserver.insight.days import iso, number_of
from tkserver.insight.facts import Topic
from tkserver.insight.histograms import percentile
from tkserver.insight.panels import ALL_PANELS, APPLICABLE_FILTERS, PANELS, Json
from tkserver.insight.query import InvalidQuery, parse
from tkserver.insight.reader import Reader
from tkserver.insight.selection import Sum
from tkserver.insight.stored import AppKey
from tkserver.storage.blocking import Connection, rows, transaction

LATENESS_DAYS = 28
"""Days whose events show how late events usually are."""

_APP = """
SELECT a.app, coalesce(a.timezone, n.timezone), CASE WHEN isfinite(a.frozen_before) THEN a.frozen_before END,
       p.summed_until
FROM insight_progress AS p CROSS JOIN (SELECT %s::uuid AS app_id, %s::uuid AS org_id) AS wanted
    LEFT JOIN insight_apps AS a USING (app_id, org_id) LEFT JOIN apps AS n USING (app_id, org_id)
"""


@dataclass(frozen=True)
class _State:
    """The state of the aggregates of an application.

    :ivar app: ``None`` if it has no events.
    """

    app: int | None
    timezone: str
    frozen_before: date | None
    summed_until: datetime | None


def compute(
    connection: Connection,
    app_id: str,
    org_id: str,
    label: str,
    panel: str,
    parameters: Mapping[str, str],
    now: datetime,
) -> Json:
    """Return the JSON of a panel.

    :param label: the name of the application, or its id.
    :param parameters: see :func:`~tkserver.insight.query.parse`.
    :raise InvalidQuery: if the panel or a parameter is not valid.
    """
    with snapshot(connection):
        facts, content = compute_parts(connection, app_id, org_id, label, panel, parameters, now)
    return {**facts, **content}


@contextmanager
def snapshot(connection: Connection) -> Iterator[None]:
    """Let the statements of a ``with`` block see the database at one moment, and change nothing."""
    with transaction(connection):
        rows(connection, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield


def compute_parts(
    connection: Connection,
    app_id: str,
    org_id: str,
    label: str,
    panel: str,
    parameters: Mapping[str, str],
    now: datetime,
) -> tuple[Json, Json]:
    """Return the facts that every panel states, and the contents of the panel, within a :func:`snapshot`.

    The parameters are those of :func:`compute`.
    """
    if panel not in ALL_PANELS:
        raise InvalidQuery(f"unknown panel {panel!r}: use {', '.join(PANELS)}")
    state = _state(connection, app_id, org_id)
    today = now.astimezone(ZoneInfo(state.timezone)).date()
    query = parse(parameters, today, APPLICABLE_FILTERS[panel])
    frozen_before = number_of(state.frozen_before or date.min)
    key = AppKey(app_id, org_id, state.timezone)
    reader = Reader(connection, key, state.app or 0, query, number_of(today), frozen_before)
    content = ALL_PANELS[panel](reader)
    # A panel has a list with the name of this parameter, which takes its place.
    hidden = {"ci": query.ci} if "ci" in content else {}
    facts = {
        "app": label,
        "timezone": state.timezone,
        "from": iso(query.first),
        "to": iso(query.last),
        "ci": query.ci,
        "filters": {**query.filters, **hidden},
        "generated_at": rfc3339(now),
        "summed_until": state.summed_until and rfc3339(state.summed_until),
        "filling_from": _filling_from(reader, now, state.timezone),
    }
    return facts, content


def _state(connection: Connection, app_id: str, org_id: str) -> _State:
    ((app, zone, frozen_before, summed_until),) = rows(connection, _APP, app_id, org_id)
    return _State(app, zone or "UTC", frozen_before, summed_until)


def _filling_from(reader: Reader, now: datetime, zone: str) -> str:
    """Return the first day for which events are still expected."""
    lateness = Sum()
    first = reader.today - LATENESS_DAYS + 1
    for row in reader.daily(Topic.LATENESS, first, reader.today, [WITHOUT_CI, WITH_CI], durations=True):
        lateness.add(row)
    late = percentile(lateness.durations, 0.95) if lateness.durations else 0.0
    return (now.astimezone(ZoneInfo(zone)) - timedelta(seconds=late)).date().isoformat()
