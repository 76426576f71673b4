"""``tkserver orgs``: names of organizations."""

from __future__ import annotations

import click

from tkserver.cli.database import open_database
from tkserver.cli.output import json_option, print_line, print_records
from tkserver.cli.parameters import NAME, SLUG
from tkserver.config import load
from tkserver.operations.orgs import find_org, list_orgs, rename_org, set_org_slug


@click.group()
def orgs() -> None:
    """Manage organizations. To create one: apps create --org."""


@orgs.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List all organizations that have a name or an application."""
    with open_database(load({})) as connection:
        found = list_orgs(connection)
    records = [{"name": org.name, "slug": org.slug, "org_id": org.org_id, "apps": org.apps} for org in found]
    print_records(
        records, as_json=as_json, empty="No organizations. Create one with: tkserver apps create NAME --org ORG"
    )


@orgs.command()
@click.argument("org")
@click.argument("name", type=NAME)
def rename(org: str, name: str) -> None:
    """Give an organization a new NAME. ORG is its current name or its id.

    The slug remains the same. To change it: orgs set-slug.
    """
    with open_database(load({})) as connection:
        rename_org(connection, find_org(connection, org), name)
    print_line(f"{org} is now called {name}")


@orgs.command("set-slug")
@click.argument("org")
@click.argument("slug", type=SLUG)
def set_slug(org: str, slug: str) -> None:
    """Let SLUG stand for the id of an organization in the path of requests.

    ORG is its name or id. Every server rejects requests with the previous slug within two seconds.
    """
    with open_database(load({})) as connection:
        set_org_slug(connection, find_org(connection, org), slug)
    print_line(f"{org} now has the slug {slug}")
