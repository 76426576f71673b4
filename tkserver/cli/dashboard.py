"""``tkserver dashboard``: sign in to the dashboard."""

from __future__ import annotations

import os
import socket
import sys
import webbrowser
from collections.abc import Mapping
from urllib.parse import urlsplit

import click

from tkserver.cli.database import open_database
from tkserver.cli.output import json_option, print_json, print_line
from tkserver.cli.parameters import Origin
from tkserver.config import Settings, load
from tkserver.operations.apps import find_app
from tkserver.operations.dashboard import SignInLink, create_link, dashboard_url, sign_out_everywhere

SIGN_OUT = "sign-out"
"""Stands in the place of an application."""

CONNECT_TIMEOUT = 2.0
"""Seconds in which a server must accept a connection."""


@click.command()
@click.argument("app", required=False)
@click.option(
    "--share/--read-only",
    "can_share",
    default=None,
    help="May the session share numbers with others?  [default: --share, with APP --read-only]",
)
@click.option("--url", type=Origin(), help="The URL of the admin port, if it is not that in the settings.")
@click.option("--no-browser", is_flag=True, help="Print the link only.")
@json_option
def dashboard(app: str | None, can_share: bool | None, url: str | None, no_browser: bool, as_json: bool) -> None:
    """Print a link to sign in to the dashboard, and open it in a browser if there is one.

    With APP, a name or id, the session shows only this application. The link is valid for five minutes and for one
    sign-in; the session lasts 30 days.

    "tkserver dashboard sign-out" ends all sessions on all servers within two seconds.
    """
    settings = load({})
    if app == SIGN_OUT:
        if can_share is not None or url is not None or no_browser:
            raise click.UsageError("sign-out has no option except --json")
        _sign_out(settings, as_json=as_json)
        return
    base_url = url or dashboard_url(settings)
    with open_database(settings) as connection:
        found = None if app is None else find_app(connection, app)
        link = create_link(connection, base_url, found, can_share=found is None if can_share is None else can_share)
    _print_link(link, as_json=as_json)
    if not as_json and not is_listening(base_url):
        print_line(f"No server responds at {base_url}. To start it, run: twistd -n tkserver", error=True)
    if not (no_browser or as_json) and has_browser(os.environ, os.geteuid(), sys.platform):
        webbrowser.open(link.url)


def has_browser(environment: Mapping[str, str], user: int, platform: str) -> bool:
    """True if a browser would appear on the screen of whoever runs the command.

    :param user: the id of the user. A browser does not run as root.
    """
    is_remote = any(name in environment for name in ("SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY"))
    has_display = platform == "darwin" or bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"))
    return user != 0 and not is_remote and has_display


def is_listening(url: str) -> bool:
    """True if something accepts connections at the host and port of a URL."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), CONNECT_TIMEOUT).close()
    except OSError:
        return False
    return True


def _sign_out(settings: Settings, *, as_json: bool) -> None:
    with open_database(settings) as connection:
        ended = sign_out_everywhere(connection)
    if as_json:
        print_json({"ended_sessions": ended})
    else:
        print_line(f"Ended sessions: {ended:,}. Links that were not used are not valid anymore either.")


def _print_link(link: SignInLink, *, as_json: bool) -> None:
    app = link.app
    if as_json:
        print_json(
            {
                "url": link.url,
                "app": app and app.label,
                "org_id": app and app.org_id,
                "app_id": app and app.app_id,
                "can_share": link.can_share,
                "expires_at": link.expires_at,
            }
        )
    else:
        print_line(link.url)
        what = "all applications" if app is None else app.label
        role = "may share numbers" if link.can_share else "read only"
        print_line(f"For {what}, {role}. Valid for five minutes and one sign-in.", error=True)
