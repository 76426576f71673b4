"""Names and slugs of organizations and applications."""

from __future__ import annotations

import threading
from uuid import UUID, uuid4

import pytest

from tests.support.client import App as ClientApp
from tests.support.database import Database
from tkserver.operations.apps import create_app, find_app, list_apps, rename_app, set_app_slug
from tkserver.operations.exceptions import (
    InvalidArgument,
    NameTaken,
    UnknownObject,
    UnnamedApplication,
    UnnamedOrganization,
)
from tkserver.operations.orgs import find_org, list_orgs, rename_org, set_org_slug
from tkserver.storage import migrations
from tkserver.storage.blocking import BlockingConnections, Connection

BEFORE = """
DELETE FROM _yoyo_migration WHERE migration_id = '0010_names';
DROP VIEW insight_daily, insight_commands, insight_versions;
DROP TABLE orgs;
DROP TRIGGER apps_slug_changed ON apps;
ALTER TABLE apps DROP COLUMN slug;
DROP INDEX apps_name_key;
ALTER TABLE apps ADD CONSTRAINT apps_name_key UNIQUE (name);
"""
"""Restores the schema before the migration."""


def test_names_of_existing_installations(database: Database) -> None:
    """Existing names that can be slugs are slugs; the others stay as they are, and the operator can choose a slug."""
    database.query(BEFORE)
    org_id = str(uuid4())
    names = ["my-cli", "My-CLI", "My app", "größe", "a/b", "x" * 100, "..", str(uuid4()), uuid4().hex, "a\tb"]
    for name in names:
        insert = "INSERT INTO apps (org_id, app_id, name) VALUES (%s, gen_random_uuid(), %s)"
        database.query(insert, org_id, name)
    for _ in range(2):  # it can be applied twice
        migrations.migrate(database.dsn, BlockingConnections())
        slugs = dict(database.query("SELECT name, slug FROM apps"))
        assert slugs == {name: name if name in ("my-cli", "My-CLI", "x" * 100) else None for name in names}
        database.query("DELETE FROM _yoyo_migration WHERE migration_id = '0010_names'")
    migrations.migrate(database.dsn, BlockingConnections())
    connection = BlockingConnections().connect(database.dsn)
    listed = {app.name: app for app in list_apps(connection)}
    assert (listed["My app"].slug, listed["My app"].org) == (None, None)
    set_app_slug(connection, listed["My app"], "my-app")
    assert find_app(connection, f"{org_id}/my-app").name == "My app"
    rename_org(connection, find_org(connection, org_id), "Acme Inc.")
    set_org_slug(connection, find_org(connection, "Acme Inc."), "acme")
    assert find_app(connection, "acme/my-app").label == "Acme Inc./My app"
    connection.close()


def test_names_are_unique_per_organization(connection: Connection) -> None:
    """Two organizations can have applications with the same name; an organization cannot, nor can two share a name."""
    first = create_app(connection, "my-cli", org="acme")
    second = create_app(connection, "my-cli", org="umbrella")
    third = create_app(connection, "other", org="acme")
    assert first.org_id == third.org_id != second.org_id
    assert [(org.name, org.slug, org.apps) for org in list_orgs(connection)] == [
        ("acme", "acme", 2),
        ("umbrella", "umbrella", 1),
    ]
    for org in ("acme", str(first.org_id)):
        with pytest.raises(NameTaken):
            create_app(connection, "my-cli", org=org)
        with pytest.raises(NameTaken):
            create_app(connection, "another", slug="my-cli", org=org)
    with pytest.raises(NameTaken, match="exists already"):
        create_app(connection, "my-cli")
    with pytest.raises(NameTaken):
        rename_app(connection, find_app(connection, "other"), "my-cli")
    with pytest.raises(NameTaken):
        set_app_slug(connection, find_app(connection, "other"), "my-cli")
    with pytest.raises(NameTaken):
        rename_org(connection, find_org(connection, "acme"), "umbrella")
    with pytest.raises(NameTaken):
        set_org_slug(connection, find_org(connection, "acme"), "umbrella")
    assert len(list_apps(connection)) == 3


def test_failed_creation_creates_no_organization(connection: Connection) -> None:
    """If an application cannot be created, nor is its organization."""
    app_id = create_app(connection, "a", org="acme").app_id
    with pytest.raises(NameTaken):
        create_app(connection, "b", org="acme", app_id=app_id)
    for invalid in ("", " x", "a\nb", "x" * 101):
        with pytest.raises(InvalidArgument):
            create_app(connection, "c", org=invalid)
    with pytest.raises(InvalidArgument):
        create_app(connection, "c", org="new", slug="not a slug")
    assert [org.name for org in list_orgs(connection)] == ["acme"]


@pytest.mark.parametrize("slug", ["", ".", "..", "a b", "ä", "a/b", "x" * 101, "0" * 32, str(UUID(int=1))], ids=repr)
def test_invalid_slugs(connection: Connection, slug: str) -> None:
    """A text that cannot be in a path, and a UUID, are rejected as slugs."""
    create_app(connection, "a", org="acme")
    with pytest.raises(InvalidArgument, match="neither a UUID"):
        set_app_slug(connection, find_app(connection, "a"), slug)
    with pytest.raises(InvalidArgument, match="neither a UUID"):
        set_org_slug(connection, find_org(connection, "acme"), slug)


def test_name_that_cannot_be_a_slug(connection: Connection) -> None:
    """Any printable text can be a name; it has no slug until the operator chooses one."""
    create_app(connection, "My App / größer", org="Acme & Söhne")
    app = find_app(connection, "My App / größer")
    assert (app.slug, find_org(connection, "Acme & Söhne").slug) == (None, None)
    set_org_slug(connection, find_org(connection, "Acme & Söhne"), "acme")
    create_app(connection, "Second", slug="second", org="acme")
    assert find_app(connection, "acme/second") == find_app(connection, "Acme & Söhne/Second")
    assert find_app(connection, "acme/My App / größer") == app


def test_renaming_keeps_the_slug(connection: Connection) -> None:
    """Programs send events to the slug, so a new name does not change it."""
    create_app(connection, "old", org="acme")
    rename_app(connection, find_app(connection, "old"), "new")
    rename_org(connection, find_org(connection, "acme"), "Acme Inc.")
    app = find_app(connection, "acme/old")
    assert (app.name, app.slug, app.org) == ("new", "old", "Acme Inc.")
    assert find_app(connection, "Acme Inc./new") == app


def test_ambiguous_names(connection: Connection) -> None:
    """If a name is ambiguous, the error lists what to specify instead."""
    first = create_app(connection, "my-cli", org="acme")
    second = create_app(connection, "my-cli", org="umbrella")
    with pytest.raises(UnknownObject) as error:
        find_app(connection, "my-cli")
    for token, label in ((first, "acme/my-cli"), (second, "umbrella/my-cli")):
        assert f"{token.org_id}/{token.app_id} ({label})" in str(error.value)
        for text in (label, f"{token.org_id}/{token.app_id}", f"{token.org_id}/my-cli", str(token.app_id)):
            assert find_app(connection, text).app_id == token.app_id
    set_org_slug(connection, find_org(connection, "umbrella"), "u")
    rename_org(connection, find_org(connection, "umbrella"), "x")
    set_org_slug(connection, find_org(connection, "acme"), "x")
    with pytest.raises(UnknownObject, match="several organizations"):
        find_org(connection, "x")


def test_id_precedes_a_name(connection: Connection) -> None:
    """A name that is the id of another application does not hide that application."""
    shop = create_app(connection, "shop", org="acme")
    impostor = create_app(connection, str(shop.app_id), org="acme")
    assert find_app(connection, str(shop.app_id)).name == "shop"
    assert find_app(connection, str(impostor.app_id)).slug is None


def test_slugs_need_names(connection: Connection, database: Database) -> None:
    """An application or organization without a name must get one first, which is then its slug if it fits."""
    app = ClientApp().install(database)
    with pytest.raises(UnnamedApplication, match="apps rename"):
        set_app_slug(connection, find_app(connection, app.app_id), "slug")
    with pytest.raises(UnnamedOrganization, match="orgs rename"):
        set_org_slug(connection, find_org(connection, app.org_id), "slug")
    rename_app(connection, find_app(connection, app.app_id), "my-cli")
    rename_org(connection, find_org(connection, app.org_id), "acme")
    assert find_app(connection, "acme/my-cli").slug == "my-cli"
    assert find_org(connection, "acme").slug == "acme"


@pytest.mark.parametrize("name", ["nothing", str(UUID(int=1)), ""])
def test_unknown_org(connection: Connection, name: str) -> None:
    """An organization that does not exist is an error, which says how to list organizations."""
    with pytest.raises(UnknownObject, match="tkserver orgs list"):
        find_org(connection, name)


def test_concurrent_creation_of_an_organization(database: Database) -> None:
    """Concurrent commands create one organization; those that were too late fail, and can be repeated."""
    results: list[str] = []
    barrier = threading.Barrier(4)

    def create(number: int) -> None:
        connection = BlockingConnections().connect(database.dsn)
        barrier.wait()
        try:
            create_app(connection, f"app-{number}", org="acme")
            results.append("created")
        except NameTaken:
            results.append("taken")
        connection.close()

    threads = [threading.Thread(target=create, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    connection = BlockingConnections().connect(database.dsn)
    assert len(results) == 4
    assert "created" in results
    assert [org.apps for org in list_orgs(connection)] == [results.count("created")]
    connection.close()
