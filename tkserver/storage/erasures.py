"""Erasure of users in the database: which users are erased, and the deletion of their events."""

from __future__ import annotations

from uuid import UUID

from tkserver.storage.erased_users import LOAD_ERASED_USERS, ErasedUsers
from tkserver.storage.pool import READ_COMMITTED, Pool
from tkserver.storage.quarantine import InvalidEvent, delete_quarantined

CHANNEL = "tkserver_erasures"
"""The NOTIFY channel for changes of the table ``erasures`` (``schema/0008_erasures.sql``)."""

_DELETE = "DELETE FROM events WHERE app_id = %s AND org_id = %s AND event_id = ANY (%s::uuid[])"


class ErasureStore:
    """The erased users of all applications."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def load(self) -> ErasedUsers:
        """Return all erased users."""
        return ErasedUsers.from_rows(await self._pool.run(LOAD_ERASED_USERS))

    async def delete(self, org_id: UUID, app_id: UUID, event_ids: list[UUID]) -> None:
        """Delete these events of an application; ids that are not stored are ignored."""
        await self._pool.run(_DELETE, (str(app_id), str(org_id), [str(event_id) for event_id in event_ids]))

    async def delete_quarantined(self, org_id: UUID, app_id: UUID, events: list[InvalidEvent]) -> None:
        """Delete these events from the quarantine of an application; those that are not there are ignored."""
        await self._pool.transaction(
            lambda execute: delete_quarantined(execute, org_id, app_id, events), READ_COMMITTED
        )
