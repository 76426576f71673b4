"""``tkserver apps``: applications and their names."""

from __future__ import annotations

import secrets
import time
from uuid import UUID, uuid4

import click

from tkserver.cli.output import Record, json_option, print_record, print_records
from tkserver.operations import apps
from tkserver.operations.apps import TIERS, App, Token
from tkserver.operations.database import connected
from tkserver.operations.retention import MOST_DAYS
from tkserver.storage.blocking import transaction

HEARD_WITHIN = 2.0
"""Seconds for every server to hear of a change."""

MAX_QUOTA = 2**63 - 1
"""Events: what the database's column holds."""


@click.group()
def apps() -> None:
    """Applications, and what they are called."""


@apps.command()
@click.argument("name")
@click.option("--org", type=click.UUID, help="The organisation's id; a new one if left out.")
@click.option("--app", "app_id", type=click.UUID, help="The application's id; a new one if left out.")
@click.option("--tier", type=click.Choice(TIERS), default="free", show_default=True, help="Decides its rate limit.")
@json_option
def create(name: str, org: UUID | None, app_id: UUID | None, tier: str, as_json: bool) -> None:
    """Make an application with its first token, and print what an SDK needs.

    The secret is shown now, and later only by tokens list --show-secret.
    """
    org, app_id = org or uuid4(), app_id or uuid4()
    with connected() as connection, transaction(connection):
        registry.create_app(connection, _checked(name), org, app_id)
        token = registry.create_token(connection, org, app_id, tier, secrets.token_hex)
    print_record({"name": name, **credentials_of(token)}, as_json=as_json)
    if not as_json:
        click.echo(f"\nFor an SDK:\n\n{sdk_settings(token)}")


@apps.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List all applications that have a name or a token."""
    with connected() as connection:
        found = registry.apps(connection)
    print_records([_record(app) for app in found], as_json=as_json, empty="No applications: tkserver apps create NAME")


@apps.command()
@click.argument("app")
@json_option
def show(app: str, as_json: bool) -> None:
    """Show an application, by its name or id."""
    with connected() as connection:
        found = registry.app(connection, app)
    print_record({**_record(found), **_usage(found)}, as_json=as_json)


@apps.command()
@click.argument("app")
@click.argument("name")
def rename(app: str, name: str) -> None:
    """Give an application, by its name or id, another NAME."""
    with connected() as connection:
        registry.rename_app(connection, registry.app(connection, app), _checked(name))
    click.echo(f"{app} is now called {name}")


@apps.command("set-quota")
@click.argument("app")
@click.argument("events", type=click.IntRange(0, MAX_QUOTA), required=False)
@click.option("--none", "unlimited", is_flag=True, help="Take the quota away.")
def set_quota(app: str, events: int | None, unlimited: bool) -> None:
    """Let an application, by its name or id, store so many EVENTS in a calendar month (UTC), or with --none any number.

    What it has stored this month already counts. Every server keeps to it when this ends.
    """
    if (events is None) != unlimited:
        raise click.UsageError("give a number of events, or --none")
    with connected() as connection:
        found = registry.app(connection, app)
        registry.set_quota(connection, found, events)
        if found.allowance is None and events is not None:
            time.sleep(HEARD_WITHIN)
            registry.recount(connection, found)
    click.echo(f"{app} may store {'any number of' if events is None else f'{events:,}'} events a month")


@apps.command("set-retention")
@click.argument("app")
@click.argument("days", type=click.IntRange(1, MOST_DAYS), required=False)
@click.option("--default", is_flag=True, help="Keep them for as long as TK__RETENTION__DAYS says.")
def set_retention(app: str, days: int | None, default: bool) -> None:
    """Keep the events of an application for so many DAYS after they were received.

    What is older is deleted within the hour, or at once by tkserver prune.
    """
    if (days is None) != default:
        raise click.UsageError("give either a number of days or --default")
    with connected() as connection:
        of = registry.app(connection, app)
        registry.set_retention(connection, of, days)
    click.echo(f"{of.name} keeps events for {'as long as TK__RETENTION__DAYS says' if default else f'{days} days'}")


def credentials_of(token: Token) -> Record:
    """What a client needs to send events."""
    return {"org_id": token.org_id, "app_id": token.app_id, "token": token.token, "secret": token.secret}


def sdk_settings(token: Token) -> str:
    """What goes into a program that uses the Rust SDK; the endpoint is that of the server's own default."""
    return f"""\
    SyncConfig::builder()
        .endpoint("http://127.0.0.1:3000")
        .org_id("{token.org_id}")?
        .app_id("{token.app_id}")?
        .token("{token.token}")
        .secret("{token.secret}")
        .build()?"""


def _checked(name: str) -> str:
    if not 0 < len(name) <= 100 or not name.isprintable() or name != name.strip():
        raise click.BadParameter("a name has 1 to 100 printable characters, and no space at its ends")
    return name


def _usage(app: App) -> Record:
    """What is used of the quota, and when it begins anew."""
    allowance = app.allowance
    return {
        "used_this_month": None if allowance is None else allowance.used,
        "quota_resets_at": None if allowance is None else allowance.resets_at,
    }


def _record(app: App) -> Record:
    return {
        "name": app.name,
        "org_id": app.org_id,
        "app_id": app.app_id,
        "active_tokens": app.active_tokens,
        "monthly_quota": app.monthly_quota,
        "retention_days": app.retention_days,
        "last_used_at": app.last_used_at,
        "created_at": app.created_at,
    }
