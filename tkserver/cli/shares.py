"""``tkserver shares``: the links with which people who are not signed in see pages of the dashboard."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import click

from tkserver.cli.database import open_database
from tkserver.cli.output import json_option, print_json, print_line, print_records
from tkserver.cli.parameters import NAME, Duration, Origin
from tkserver.config import load
from tkserver.operations.apps import find_app
from tkserver.operations.dashboard import dashboard_url
from tkserver.operations.shares import create_share, list_shares, revoke_share
from tkserver.storage.blocking import transaction
from tkserver.storage.share_links import DEFAULT_LIFETIME, MAX_ID, SHAREABLE

PAGES = SHAREABLE[:-1]
"""The page of a command needs its name, which only the dashboard can share."""

DAYS = ("7", "30", "90", "365")


@click.group()
def shares() -> None:
    """Let people who are not signed in see pages of the dashboard with a link.

    "Share this page" in the dashboard creates links, too, also with filters.
    """


@shares.command()
@click.argument("app")
@click.option("--name", type=NAME, required=True, help="Whoever opens the link sees it.")
@click.option("--page", "pages", type=click.Choice(PAGES), multiple=True, default=PAGES[:1], show_default=True)
@click.option("--days", type=click.Choice(DAYS), default="30", show_default=True, help="The period, up to today.")
@click.option(
    "--expires",
    type=Duration(),
    default=f"{DEFAULT_LIFETIME}d",
    show_default=True,
    help="After this time, the link is not valid anymore.",
)
@click.option("--url", type=Origin(), help="The URL of the admin port, if it is not that in the settings.")
@json_option
def create(
    app: str, name: str, pages: Sequence[str], days: str, expires: timedelta, url: str | None, as_json: bool
) -> None:
    """Create a share link to pages of an application, and print it. APP is its name or id.

    Repeat --page for several pages. The link cannot be printed again.
    """
    settings = load({})
    base_url = url or dashboard_url(settings)
    with open_database(settings) as connection, transaction(connection):  # nothing is created if it cannot be printed
        found = find_app(connection, app)
        path, expires_at = create_share(connection, found, name, pages, int(days), expires)
        if as_json:
            print_json({"url": base_url + path, "name": name, "app": found.label, "expires_at": expires_at})
        else:
            print_line(base_url + path)


@shares.command("list")
@click.argument("app", required=False)
@json_option
def list_(app: str | None, as_json: bool) -> None:
    """List the share links that have not expired. APP is the name or id of an application; by default, all."""
    with open_database(load({})) as connection:
        found = list_shares(connection, None if app is None else find_app(connection, app))
    records = [
        {
            "id": share.link.id,
            "name": share.link.name,
            "app": share.app,
            "pages": list(share.link.pages) if as_json else ", ".join(share.link.pages),
            "filters": share.link.filters.removeprefix("?"),
            "created_at": share.link.created_at,
            "expires_at": share.link.expires_at,
        }
        for share in found
    ]
    print_records(
        records, as_json=as_json, empty="No share links. Create one with: tkserver shares create APP --name NAME"
    )


@shares.command()
@click.argument("link", type=click.IntRange(1, MAX_ID))
def revoke(link: int) -> None:
    """Revoke a share link, with immediate effect on all servers. LINK is its id."""
    with open_database(load({})) as connection:
        name = revoke_share(connection, link)
    print_line(f"revoked: {name}")
