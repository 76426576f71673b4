"""The catalog: it selects the same applications as commands do."""

from __future__ import annotations

from itertools import product

import pytest

from tests.support.client import App
from tests.support.database import Database
from tkserver.insight.catalog import EVERYTHING, SELECT_CATALOG, Catalog, Scope
from tkserver.operations.apps import find_app, list_apps
from tkserver.operations.exceptions import UnknownObject
from tkserver.storage.blocking import Connection, rows

NAMES = ("a", "b", "a/b", "b/a/b", "ä b")
SLUGS = ("a", "s1", None, "b", "s4")
ORGS = ("a", "a/b", None)


@pytest.fixture
def apps(database: Database) -> list[App]:
    """Applications whose names can be confused, one without a name, and two with the same id."""
    apps = []
    for number, org in enumerate(ORGS):
        first = App().install(database)
        if org is not None:
            database.query("INSERT INTO orgs (org_id, name, slug) VALUES (%s, %s, %s)", first.org_id, org, f"o{number}")
        for slug, name in zip(SLUGS, NAMES, strict=True):
            app = App(org_id=first.org_id).install(database)
            insert = "INSERT INTO apps (org_id, app_id, name, slug) VALUES (%s, %s, %s, %s)"
            database.query(insert, app.org_id, app.app_id, name, slug)
            apps.append(app)
        apps.append(first)
    apps.append(App(app_id=apps[0].app_id).install(database))
    return apps


def load(connection: Connection) -> Catalog:
    """Return the current catalog."""
    ((summed_until, text),) = rows(connection, SELECT_CATALOG)
    return Catalog.decode(summed_until, text)


def commands_find(connection: Connection, text: str) -> list[tuple[str, str]]:
    """Return the ids of the application that commands find; an empty list for none or several."""
    try:
        return [find_app(connection, text).key]
    except UnknownObject:
        return []


def test_finds_what_commands_find(connection: Connection, apps: list[App]) -> None:
    """A text selects the same application as in a command, or none or several in both."""
    catalog = load(connection)
    orgs = ["a", "a/b", "o0", apps[0].org_id, apps[-1].org_id]
    own = [*NAMES, "s1", apps[0].app_id, apps[5].app_id]
    found_any = 0
    for text in [*own, "nothing", "", apps[1].app_id.upper(), *(f"{org}/{name}" for org, name in product(orgs, own))]:
        found = catalog.find(text, EVERYTHING)
        expected = commands_find(connection, text)
        assert len(found) == 1 if expected else len(found) != 1, text
        if expected:
            assert [(app.app_id, app.org_id) for app in found] == expected, text
            found_any += 1
    assert found_any > 15


def test_lists_what_commands_list(connection: Connection, apps: list[App]) -> None:
    """The catalog contains the applications that commands list, with the same labels."""
    expected = sorted((str(app.app_id), str(app.org_id), app.label) for app in list_apps(connection))
    assert len(expected) == len(apps)
    assert sorted((app.app_id, app.org_id, app.label) for app in load(connection).apps) == expected


def test_scope_hides_other_applications(connection: Connection, apps: list[App]) -> None:
    """Of applications with the same name or id, only the one in the scope is found."""
    catalog = load(connection)
    first, same_id = apps[0], apps[-1]
    assert len(catalog.find(first.app_id, EVERYTHING)) == 2
    for app in (first, same_id):
        scope = Scope(app.app_id, app.org_id)
        assert [found.org_id for found in catalog.find(app.app_id, scope)] == [app.org_id]
        assert [found.org_id for found in catalog.visible(scope)] == [app.org_id]


def test_long_texts_are_not_divided(connection: Connection, apps: list[App]) -> None:
    """A text that is longer than any names is not searched for them."""
    assert load(connection).find("a/" * 100_000, EVERYTHING) == []
