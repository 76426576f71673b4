"""The number of duplicates of each application on each day, for statistics."""

from __future__ import annotations

from collections import Counter
from typing import Any
from uuid import UUID

from tkserver import log
from tkserver.storage.errors import StorageError
from tkserver.storage.periodic import PeriodicWriter
from tkserver.storage.pool import Pool

_log = log.logger(__name__)

INTERVAL = 30.0
"""Seconds between two writes."""

# The application may have been deleted in the meantime. The rows are locked in the same order by all servers.
_ADD = """
INSERT INTO insight_duplicates AS d (org_id, app_id, day, events)
SELECT n.org_id, n.app_id, (now() AT TIME ZONE coalesce(a.timezone, 'UTC'))::date, n.events
FROM unnest(%s::uuid[], %s::uuid[], %s::bigint[]) AS n (org_id, app_id, events)
    LEFT JOIN apps AS a USING (app_id, org_id)
WHERE EXISTS (SELECT FROM api_tokens AS t WHERE t.app_id = n.app_id AND t.org_id = n.org_id)
ORDER BY n.app_id, n.org_id
ON CONFLICT (app_id, org_id, day) DO UPDATE SET events = d.events + excluded.events
"""


class DuplicateCounts:
    """Counts duplicates in memory, and adds them to the table periodically, so that a commit need not write them.

    If the process dies, or the connection is lost, the counts of the last seconds may be missing or added twice.
    """

    def __init__(self, pool: Pool, reactor: Any) -> None:
        self._pool = pool
        self._counts: Counter[tuple[int, int]] = Counter()
        self._writer = PeriodicWriter(self._flush, INTERVAL, reactor)
        self.start, self.stop = self._writer.start, self._writer.stop

    def add(self, application: tuple[int, int], events: int) -> None:
        """Count duplicates.

        :param application: see :attr:`~tkserver.storage.events.Submission.application`.
        """
        if events:
            self._counts[application] += events

    async def _flush(self) -> None:
        counts, self._counts = self._counts, Counter()
        if not counts:
            return
        org_ids = [str(UUID(int=org_id)) for org_id, _ in counts]
        app_ids = [str(UUID(int=app_id)) for _, app_id in counts]
        try:
            await self._pool.run(_ADD, (org_ids, app_ids, list(counts.values())))
        except StorageError as error:
            _log.warn(
                "the number of duplicates could not be written: {error}", error=error, event="duplicates_not_written"
            )
            self._counts += counts
