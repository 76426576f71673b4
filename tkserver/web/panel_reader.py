"""Panels for requests: from a cache if they are still current, otherwise computed in another process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

import msgspec
from cachetools import LRUCache

from tkserver.insight.catalog import AppState, Catalog, Version, entity_tag, rfc3339
from tkserver.insight.panels import APPLICABLE_FILTERS
from tkserver.insight.query import InvalidQuery, parse
from tkserver.insight.query_process import Computed, Invalid, Job, Outcome, Task, Unavailable, Unknown
from tkserver.wire.api_errors import InternalError, InvalidParameter, NotFound, StorageUnavailable

ENTRY_BYTES = 2048
"""What an entry of the cache takes in addition to the JSON of its panel, about."""

Compute = Callable[[Task], Awaitable[Outcome]]
"""Computes a panel. See :class:`tkserver.server.query_processes.QueryProcesses`."""


class PanelCache:
    """Panels by their entity tags; those that were not used for longest are dropped first.

    :param max_bytes: of all panels together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._panels: LRUCache[str, Computed] = LRUCache(max_bytes, lambda panel: len(panel.content) + ENTRY_BYTES)

    @property
    def bytes(self) -> int:
        """The size of all panels, about."""
        return int(self._panels.currsize)

    @property
    def max_bytes(self) -> int:
        """The maximum size."""
        return int(self._panels.maxsize)

    def get(self, tag: str) -> Computed | None:
        """Return a panel."""
        return self._panels.get(tag)

    def put(self, tag: str, panel: Computed) -> None:
        """Store a panel, unless it alone is larger than the cache."""
        if len(panel.content) + ENTRY_BYTES <= self._panels.maxsize:
            self._panels[tag] = panel


@dataclass(frozen=True)
class CurrentPanel:
    """A panel that is current.

    :ivar tag: its entity tag.
    :ivar summed_until: the time up to which events are in the numbers; ``None`` before the first event.
    """

    tag: str
    summed_until: str | None
    panel: Computed | None

    @property
    def body(self) -> bytes:
        """The panel as JSON."""
        assert self.panel is not None, "the client has the panel already"
        facts = msgspec.json.encode({**self.panel.facts, "summed_until": self.summed_until})
        return facts[:-1] + b"," + bytes(self.panel.content)[1:]


class PanelReader:
    """Returns panels.

    :param now: returns Unix time.
    """

    def __init__(self, compute: Compute, cache: PanelCache, now: Callable[[], float]) -> None:
        self._compute = compute
        self._cache = cache
        self._now = now

    @property
    def now(self) -> datetime:
        """The current time."""
        return datetime.fromtimestamp(self._now(), timezone.utc)

    async def read(
        self,
        catalog: Catalog,
        app: AppState,
        name: str,
        parameters: Mapping[str, str],
        is_known: Callable[[str], bool] = lambda _: False,
    ) -> CurrentPanel:
        """Return a panel of an application.

        :param name: of the panel.
        :param parameters: see :func:`~tkserver.insight.query.parse`.
        :param is_known: takes an entity tag, and returns true if the client has the panel already. It is not read then.
        :raise InvalidParameter: if a parameter is not valid.
        :raise ApiError: if the panel cannot be computed.
        """
        now = self.now
        tag = _tag(Version(catalog.definitions, app), name, parameters, now)
        if (panel := self._cache.get(tag)) is None and not is_known(tag):
            task = self._task(Job(app.app_id, app.org_id, name, dict(parameters), now), tag)
            panel = _computed(await self._compute(task))
            tag = _tag(panel.version, name, parameters, now)  # the database may be newer than the catalog
        return CurrentPanel(tag, _latest(catalog.summed_until, panel), panel)

    def _task(self, job: Job, tag: str) -> Task:
        def keep(panel: Computed) -> None:
            self._cache.put(_tag(panel.version, job.panel, job.parameters, job.now), panel)

        return Task(job, lambda: self._cache.get(tag), keep)


def _tag(version: Version, panel: str, parameters: Mapping[str, str], now: datetime) -> str:
    """Return the entity tag of a panel.

    :raise InvalidParameter: if a parameter is not valid.
    """
    try:
        query = parse(parameters, version.app.today(now), APPLICABLE_FILTERS[panel])
    except InvalidQuery as error:
        raise InvalidParameter(str(error)) from None
    return entity_tag(version, panel, query, now)


def _computed(outcome: Outcome) -> Computed:
    """Return a panel.

    :raise ApiError: if it could not be computed.
    """
    if isinstance(outcome, Computed):
        return outcome
    if isinstance(outcome, Unknown):
        raise NotFound("there is no such application: it has just been deleted")
    if isinstance(outcome, Invalid):
        raise InvalidParameter(outcome.message)
    if isinstance(outcome, Unavailable):
        raise StorageUnavailable("the database is not available at the moment: try again later")
    raise InternalError("the statistics could not be computed")


def _latest(summed_until: datetime | None, panel: Computed | None) -> str | None:
    """Return the time up to which events are in the numbers. It advances even if no events arrive."""
    times = [rfc3339(summed_until) if summed_until else None, panel and panel.facts["summed_until"]]
    return max((time for time in times if time), default=None)
