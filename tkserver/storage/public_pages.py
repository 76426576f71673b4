"""Public pages as the database stores them (``schema/0019_public_pages.sql``), and a cache of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from hashlib import blake2b
from typing import Any

import msgspec
from twisted.internet.defer import ensureDeferred

from tkserver.deferreds import SharedDeferred
from tkserver.storage.changes import ChangeListener
from tkserver.storage.errors import StorageError
from tkserver.storage.pool import Pool

CHANNEL = "tkserver_public_pages"
"""The NOTIFY channel for changes of the table."""

LIFETIME = 60.0
"""Seconds after which the pages are read again, if somebody requests one. Changes are noticed immediately."""

RETRY_INTERVAL = 2.0
"""Seconds after which they are read again while changes could be missed, or after the database did not respond."""

_SELECT = """
SELECT p.slug, a.name, p.last_day::text, p.numbers::text
FROM public_pages AS p JOIN apps AS a USING (app_id, org_id)
"""


class PublicPage(msgspec.Struct, frozen=True):
    """The public page of an application.

    :ivar slug: its name in the path.
    :ivar name: of the application.
    :ivar last_day: the last day that is in the numbers.
    :ivar numbers: see :func:`tkserver.insight.public_numbers.public_numbers`.
    :ivar version: changes whenever anything else does.
    """

    slug: str
    name: str
    last_day: date
    numbers: Mapping[str, Mapping[str, Any]]
    version: str


class PublicPages:
    """All public pages by slug. However many requests there are, the database is asked about once a minute.

    While the database is not available, the pages are those that were last read.

    :param clock: returns seconds, on any scale.
    """

    def __init__(self, pool: Pool, changes: ChangeListener, clock: Callable[[], float]) -> None:
        self._pool = pool
        self._changes = changes
        self._clock = clock
        self._pages: Mapping[str, PublicPage] = {}
        self._valid_until = float("-inf")
        self._generation = 0
        self._reading: SharedDeferred[None] | None = None
        changes.subscribe(CHANNEL, self._invalidate)

    async def find(self, slug: str) -> PublicPage | None:
        """Return the page with a slug; ``None`` if there is none, or if the pages could not be read yet."""
        while self._clock() >= self._valid_until:  # again, if the pages have changed in the meantime
            if self._reading is None or self._reading.done:
                self._reading = SharedDeferred(ensureDeferred(self._read(self._generation)))
            await self._reading.wait()
        return self._pages.get(slug)

    def _invalidate(self) -> None:
        """Read the pages with the next request, even if an earlier reading is not complete."""
        self._generation += 1
        self._valid_until, self._reading = float("-inf"), None

    async def _read(self, generation: int) -> None:
        try:
            rows = await self._pool.run(_SELECT)
        except StorageError:
            rows = None
        if generation == self._generation:
            if rows is not None:
                self._pages = {slug: _page(slug, name, day, numbers) for slug, name, day, numbers in rows}
            is_safe = rows is not None and self._changes.listening
            self._valid_until = self._clock() + (LIFETIME if is_safe else RETRY_INTERVAL)


def _page(slug: str, name: str, last_day: str, numbers: str) -> PublicPage:
    version = blake2b(msgspec.json.encode([slug, name, last_day, numbers]), digest_size=15).hexdigest()
    return PublicPage(slug, name, date.fromisoformat(last_day), msgspec.json.decode(numbers), version)
