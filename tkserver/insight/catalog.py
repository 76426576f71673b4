"""The catalog: applications, the state of their aggregates, and the tokens that allow to read them.

It is small, and is all that the server needs to know to find out whether statistics have changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import date, datetime, timezone
from functools import cached_property
from hashlib import blake2b
from typing import NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Struct

from tkserver import __version__
from tkserver.insight.query import Query
from tkserver.storage.blocking import Connection, rows
from tkserver.storage.read_tokens import hash_read_token

LIVE_PANELS = frozenset({"quality"})
"""Panels with numbers that are not aggregated, such as the size of tables. These numbers are at most a minute old."""

MAX_NAMES = 201
"""The length of a name of an organization, a slash, and a name of an application, at most."""

_APPS = """
SELECT app_id, org_id, n.name, n.slug, o.name AS org, o.slug AS org_slug,
       coalesce(n.staging, false) AS staging,
       coalesce(i.timezone, n.timezone, 'UTC') AS timezone, i.frozen_before::text AS frozen_before,
       (extract(epoch FROM i.changed_at) * 1000000)::bigint AS changed_at
FROM (apps AS n FULL JOIN (SELECT DISTINCT app_id, org_id FROM api_tokens) AS t USING (app_id, org_id))
    LEFT JOIN orgs AS o USING (org_id) LEFT JOIN insight_apps AS i USING (app_id, org_id)
"""

SELECT_CATALOG = f"""
SELECT summed_until, json_build_object(
    'definitions', definitions,
    'apps', (SELECT coalesce(json_agg(a ORDER BY a.name, a.app_id, a.org_id), '[]') FROM ({_APPS}) AS a),
    'tokens', (
        SELECT coalesce(json_agg(t ORDER BY t.hash), '[]')
        FROM (SELECT encode(token_hash, 'hex') AS hash, app_id, org_id FROM read_tokens WHERE is_active) AS t
    )
)::text FROM insight_progress
"""
"""Returns the arguments of :meth:`Catalog.decode`."""

_SELECT_APP = f"""
SELECT definitions, (SELECT row_to_json(a)::text FROM ({_APPS} WHERE app_id = %s AND org_id = %s) AS a)
FROM insight_progress
"""


class AppState(Struct, frozen=True):
    """An application and the state of its aggregates. Ids are texts, which are decoded faster than UUIDs.

    :ivar name: ``None`` if it has only tokens.
    :ivar org: the name of its organization, if that has one.
    :ivar staging: true if its events are only for tests.
    :ivar timezone: divides time into days.
    :ivar frozen_before: the first day that is not frozen, as PostgreSQL writes it.
    :ivar changed_at: when the aggregates were last changed, in microseconds; ``None`` if there are none.
    """

    app_id: str
    org_id: str
    name: str | None
    slug: str | None
    org: str | None
    org_slug: str | None
    timezone: str
    frozen_before: str | None
    changed_at: int | None
    staging: bool = False

    @property
    def label(self) -> str:
        """The name, after that of the organization if there is one; or the id if it has no name."""
        if self.name is None:
            return self.app_id
        return self.name if self.org is None else f"{self.org}/{self.name}"

    def today(self, now: datetime) -> date:
        """Return the current day in the time zone of the application."""
        return now.astimezone(ZoneInfo(self.timezone)).date()


class Scope(Struct, frozen=True):
    """The applications that somebody may read: one, or all of them."""

    app_id: str | None = None
    org_id: str | None = None

    def contains(self, app: AppState) -> bool:
        """True if statistics of this application may be read."""
        return self.app_id is None or (self.app_id, self.org_id) == (app.app_id, app.org_id)


EVERYTHING = Scope()


class _Token(Struct, frozen=True):
    hash: str
    app_id: str | None
    org_id: str | None


class _Content(Struct, frozen=True):
    definitions: int
    apps: list[AppState]
    tokens: list[_Token]


class Catalog:
    """All applications and tokens at one moment.

    :ivar definitions: the version of the definitions by which the aggregates were computed.
    :ivar summed_until: events that were received before this time are aggregated. It may advance without any other
        change.
    """

    def __init__(self, summed_until: datetime | None, content: _Content) -> None:
        self.summed_until = summed_until
        self.apps: list[AppState] = content.apps
        self.definitions = content.definitions
        self._content = content

    @classmethod
    def decode(cls, summed_until: datetime | None, text: str) -> Catalog:
        """Return the catalog that the database has described."""
        return cls(summed_until, msgspec.json.decode(text, type=_Content))

    def visible(self, scope: Scope) -> list[AppState]:
        """Return the applications whose statistics somebody may read."""
        return [app for app in self.apps if scope.contains(app)]

    def find(self, name_or_id: str, scope: Scope) -> list[AppState]:
        """Return the applications that a text selects, as commands do: an id, a name, or a slug, or one of these after
        that of the organization and a slash.

        :param scope: others are not found.
        """
        found = self._by_id.get(_canonical(name_or_id), []) or [
            *self._by_name.get(name_or_id, []),
            *self._of_organizations(name_or_id),
        ]
        return [app for app in dict.fromkeys(found) if scope.contains(app)]

    def unique_name(self, app: AppState) -> str:
        """Return a text that selects only this application and that a path can contain: its label, or its id."""
        is_unique = self.find(app.label, EVERYTHING) == [app] and app.label not in (".", "..")
        return app.label if is_unique else app.app_id

    def _of_organizations(self, text: str) -> Iterator[AppState]:
        """Return the applications of organizations. Names can contain slashes, so that each of them may divide both."""
        positions = [position for position, character in enumerate(text) if character == "/"]
        for position in positions if len(text) <= MAX_NAMES else ():
            org, own = text[:position], text[position + 1 :]
            for app in [*self._by_id.get(own, []), *self._by_name.get(own, [])]:
                if org in (app.org, app.org_slug, app.org_id):
                    yield app

    def scope_of(self, token: str) -> Scope | None:
        """Return what a token allows to read; ``None`` if it is not valid."""
        return self._by_hash.get(hash_read_token(token).hex())

    @cached_property
    def _by_id(self) -> dict[str, list[AppState]]:
        return _grouped((app.app_id, app) for app in self.apps)

    @cached_property
    def _by_name(self) -> dict[str, list[AppState]]:
        return _grouped((name, app) for app in self.apps for name in {app.name, app.slug} if name)

    @cached_property
    def _by_hash(self) -> dict[str, Scope]:
        return {token.hash: Scope(token.app_id, token.org_id) for token in self._content.tokens}


def _grouped(pairs: Iterable[tuple[str, AppState]]) -> dict[str, list[AppState]]:
    result: defaultdict[str, list[AppState]] = defaultdict(list)
    for key, app in pairs:
        result[key].append(app)
    return dict(result)


def _canonical(text: str) -> str:
    """Return an id as PostgreSQL writes it, or the text itself if it is not a UUID."""
    try:
        return str(UUID(text))
    except ValueError:
        return text


class Version(NamedTuple):
    """The version of the numbers of an application. It determines them, together with a query and the time."""

    definitions: int
    app: AppState


def read_version(connection: Connection, app_id: str, org_id: str) -> Version | None:
    """Return the state of an application as the current transaction sees it; ``None`` if it does not exist."""
    ((definitions, text),) = rows(connection, _SELECT_APP, app_id, org_id)
    return None if text is None else Version(definitions, msgspec.json.decode(text, type=AppState))


def entity_tag(version: Version, panel: str, query: Query, now: datetime) -> str:
    """Return the weak entity tag (RFC 9110, section 8.8.3) of a panel.

    Equal tags mean equal numbers. The local hour is a part of the tag, because the first day that is still filling
    depends on the time.
    """
    local = now.astimezone(ZoneInfo(version.app.timezone))
    moment = local.isoformat(timespec="minutes" if panel in LIVE_PANELS else "hours")
    filters = sorted(query.filters.items())
    content = [__version__, version, panel, query.first, query.last, query.ci, filters, moment]
    return f'W/"{blake2b(msgspec.json.encode(content), digest_size=15).hexdigest()}"'


def rfc3339(time: datetime) -> str:
    """Return a time as the JSON of statistics contains it."""
    return time.astimezone(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
