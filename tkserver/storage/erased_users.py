"""The set of erased users, identified by a keyed hash of their ids."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

LOAD_ERASED_USERS = """
SELECT k.key, e.user_hash, e.org_id::text, e.app_id::text FROM erasure_key AS k LEFT JOIN erasures AS e ON true
"""
"""Select the rows for :meth:`ErasedUsers.from_rows`."""


@dataclass(frozen=True)
class ErasedUsers:
    """The set of all erased users.

    :ivar everywhere: hashes of the users whose events no application stores.
    :ivar by_app: hashes of the others, by the integers of ``org_id`` and ``app_id``.
    """

    key: bytes = field(repr=False)
    everywhere: frozenset[bytes]
    by_app: Mapping[tuple[int, int], frozenset[bytes]]

    @classmethod
    def from_rows(cls, rows: list[tuple[Any, ...]]) -> ErasedUsers:
        """
        :param rows: the key of the hashes, a hash, and its ``org_id`` and ``app_id``. If no user is erased, there is
            one row, with only the key.
        """
        everywhere: set[bytes] = set()
        by_app: dict[tuple[int, int], set[bytes]] = {}
        for _, erased_hash, org_id, app_id in rows:
            if app_id is not None:
                by_app.setdefault((UUID(org_id).int, UUID(app_id).int), set()).add(bytes(erased_hash))
            elif erased_hash is not None:
                everywhere.add(bytes(erased_hash))
        frozen = {app: frozenset(hashes) for app, hashes in by_app.items()}
        return cls(bytes(rows[0][0]), frozenset(everywhere), frozen)

    def intersection(self, application: tuple[int, int], user_ids: set[str]) -> set[str]:
        """Return those users of an application who are erased.

        :param application: the integers of its ``org_id`` and ``app_id``.
        """
        in_app = self.by_app.get(application, frozenset())
        if not in_app and not self.everywhere:
            return set()
        hashes = {user_id: user_hash(self.key, user_id) for user_id in user_ids}
        return {user_id for user_id, hashed in hashes.items() if hashed in self.everywhere or hashed in in_app}


def user_hash(key: bytes, user_id: str) -> bytes:
    """Return the hash that identifies an erased user. Without the key, nobody can compute it from an id."""
    return hmac.digest(key, user_id.encode(), "sha256")
