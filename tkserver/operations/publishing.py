"""Public pages: publish an application, and withdraw it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date, datetime

from tkserver.insight import public_pages
from tkserver.operations import statistics
from tkserver.operations.exceptions import InvalidArgument, NameTaken, UnknownObject, UnnamedApplication
from tkserver.operations.models import App
from tkserver.operations.names import check_public_slug
from tkserver.operations.paced import Sleep
from tkserver.storage.blocking import Connection, rows, value
from tkserver.storage.errors import DuplicateKey

_PUBLISH = """
INSERT INTO public_pages (slug, app_id, org_id, last_day, numbers, computed_at) VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (app_id, org_id) DO UPDATE SET
    slug = excluded.slug, last_day = excluded.last_day, numbers = excluded.numbers, computed_at = excluded.computed_at
"""
_UNPUBLISH = "DELETE FROM public_pages WHERE app_id = %s AND org_id = %s RETURNING slug"
_SLUG = "SELECT max(slug) FROM public_pages WHERE app_id = %s AND org_id = %s"


@dataclass(frozen=True)
class Published:
    """A public page.

    :ivar last_day: the last day that is in its numbers.
    """

    slug: str
    last_day: date

    @property
    def path(self) -> str:
        """Its path on the public port."""
        return f"/public/{self.slug}"


def publish(connection: Connection, app: App, slug: str | None, now: datetime, sleep: Sleep) -> Published:
    """Let everybody see totals of an application. If it is published already, change the slug.

    :param slug: the name of the page in its path; by default, the current one, or the slug of the application.
    :param sleep: waits for a number of seconds.
    :raise InvalidArgument: if there is no slug, or if it is not valid.
    :raise NameTaken: if another application has this page.
    :raise UnnamedApplication: if the application has no name.
    """
    if app.name is None:
        raise UnnamedApplication("the application has no name, which the page would show: use apps rename first")
    slug = slug or public_slug(connection, app) or app.slug
    if slug is None:
        raise InvalidArgument("the application has no slug, which would be the name of the page: specify --slug")
    check_public_slug(slug)
    statistics.refresh(connection, sleep)
    last_day, numbers = public_pages.compute(connection, *app.key, now)
    try:
        rows(connection, _PUBLISH, slug, *app.key, last_day, json.dumps(numbers), now)
    except DuplicateKey:
        raise NameTaken(f"another application has the page {slug!r}: choose another slug with --slug") from None
    return Published(slug, last_day)


def unpublish(connection: Connection, app: App) -> str:
    """Remove the public page of an application, and return its slug.

    :raise UnknownObject: if it has none.
    """
    for (slug,) in rows(connection, _UNPUBLISH, *app.key):
        return str(slug)
    raise UnknownObject(f"{app.label} is not published")


def public_slug(connection: Connection, app: App) -> str | None:
    """Return the slug of the public page of an application, if there is one."""
    slug: str | None = value(connection, _SLUG, *app.key)
    return slug
