"""Erased users: which these are, by a keyed hash of their ids."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from tkserver.storage.pool import Pool

CHANNEL = "tkserver_erasures"
"""Where ``schema/0008_erasures.sql`` announces that a user was erased, or is not any more."""

LOAD = """
SELECT k.key, e.user_hash, e.org_id::text, e.app_id::text FROM erasure_key AS k LEFT JOIN erasures AS e ON true
"""
"""The key, and with it every erasure; one row without any where there are none."""

_DELETE = "DELETE FROM events WHERE app_id = %s AND org_id = %s AND event_id = ANY (%s::uuid[])"


@dataclass(frozen=True)
class Erased:
    """All erased users.

    :ivar everywhere: hashes of those whose events no application stores.
    :ivar by_app: hashes by the integers of ``org_id`` and ``app_id``.
    """

    key: bytes = field(repr=False)
    everywhere: frozenset[bytes]
    by_app: Mapping[tuple[int, int], frozenset[bytes]]

    @classmethod
    def of(cls, rows: list[tuple[Any, ...]]) -> Erased:
        """What ``LOAD`` has given."""
        everywhere: set[bytes] = set()
        by_app: dict[tuple[int, int], set[bytes]] = {}
        for _, user_hash, org_id, app_id in rows:
            if app_id is not None:
                by_app.setdefault((UUID(org_id).int, UUID(app_id).int), set()).add(bytes(user_hash))
            elif user_hash is not None:
                everywhere.add(bytes(user_hash))
        frozen = {app: frozenset(hashes) for app, hashes in by_app.items()}
        return cls(bytes(rows[0][0]), frozenset(everywhere), frozen)

    def among(self, application: tuple[int, int], user_ids: set[str]) -> set[str]:
        """Those of an application's users that are erased.

        :param application: the integers of its ``org_id`` and ``app_id``.
        """
        here = self.by_app.get(application, frozenset())
        if not here and not self.everywhere:
            return set()
        hashes = {user_id: user_hash(self.key, user_id) for user_id in user_ids}
        return {user_id for user_id, found in hashes.items() if found in self.everywhere or found in here}


def user_hash(key: bytes, user_id: str) -> bytes:
    """What is remembered of a user, and tells nothing without the key."""
    return hmac.digest(key, user_id.encode(), "sha256")


class ErasureStore:
    """The erased users of every application."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def load(self) -> Erased:
        """All of them, as they are now."""
        return Erased.of(await self._pool.run(LOAD))

    async def delete(self, org_id: UUID, app_id: UUID, event_ids: list[UUID]) -> None:
        """Delete these events of an application, as far as they are there."""
        await self._pool.run(_DELETE, (str(app_id), str(org_id), [str(event_id) for event_id in event_ids]))
