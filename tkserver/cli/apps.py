"""``tkserver apps``: applications, their quotas, their retention, and their deletion."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from uuid import UUID

import click

from tkserver.cli.confirmation import confirm, dry_run_option, yes_option
from tkserver.cli.database import open_database, sleep
from tkserver.cli.output import Record, counted, json_option, print_line, print_record, print_records, progress_bar
from tkserver.cli.parameters import NAME, PUBLIC_SLUG, SLUG
from tkserver.config import load
from tkserver.operations import publishing, quota, retention, statistics
from tkserver.operations.app_deletion import count_events, delete_app
from tkserver.operations.apps import create_app, find_app, list_apps, rename_app, set_app_slug
from tkserver.operations.models import STAGING_DAYS, STAGING_QUOTA, TIERS, App, Token
from tkserver.operations.staging import check_staging, promote
from tkserver.storage.blocking import Connection, transaction


@click.group()
def apps() -> None:
    """Manage applications."""


@apps.command()
@click.argument("name", type=NAME)
@click.option("--slug", type=SLUG, help="Stands for the id in the path of requests; by default, NAME if it fits.")
@click.option("--org", help="Name or id of the organization, which is created if necessary; by default, a new id.")
@click.option("--app", "app_id", type=click.UUID, help="Id of the application; by default, a new id.")
@click.option(
    "--tier", type=click.Choice(TIERS), default="free", show_default=True, help="Selects the rate limit of the token."
)
@click.option(
    "--staging", is_flag=True, help=f"For tests: {STAGING_QUOTA} events a month, {STAGING_DAYS} days, until promoted."
)
@json_option
def create(
    name: str, slug: str | None, org: str | None, app_id: UUID | None, tier: str, staging: bool, as_json: bool
) -> None:
    """Create an application and its first token.

    Prints the settings for an SDK, including the secret. To print the secret again: tokens list --show-secret.
    """
    with open_database(load({})) as connection, transaction(connection):  # nothing is created if it cannot be printed
        token = create_app(connection, name, slug=slug, org=org, app_id=app_id, tier=tier, staging=staging)
        created = find_app(connection, f"{token.org_id}/{token.app_id}")
        names = {"name": created.name, "slug": created.slug, "org": created.org, "staging": created.staging}
        print_record({**names, **credentials(token)}, as_json=as_json)
        if not as_json:
            click.echo(f"\nFor an SDK:\n\n{_sdk_settings(token)}")


@apps.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List all applications that have a name or a token.

    The events and users of the last 30 days are those of "tkserver stats APP", without CI. A hyphen stands for numbers
    that are not computed yet.
    """
    with open_database(load({})) as connection:
        found = list_apps(connection)
        activity = statistics.read_activity(connection, datetime.now(timezone.utc))
    empty = "No applications. Create one with: tkserver apps create NAME"
    recent = [_recent(activity.of(app.app_id, app.org_id)) for app in found]
    records = [{**_record(app), **numbers} for app, numbers in zip(found, recent, strict=True)]
    table = [_row(app, numbers) for app, numbers in zip(found, recent, strict=True)]
    print_records(records, as_json=as_json, empty=empty, table=table)


@apps.command()
@click.argument("app")
@json_option
def show(app: str, as_json: bool) -> None:
    """Show an application. APP is its name or id."""
    with open_database(load({})) as connection:
        found = find_app(connection, app)
        slug = publishing.public_slug(connection, found)
    print_record({**_record(found), **_quota_usage(found), "public_slug": slug}, as_json=as_json)


@apps.command()
@click.argument("app")
@click.argument("name", type=NAME)
def rename(app: str, name: str) -> None:
    """Give an application a new NAME. APP is its current name or its id.

    The slug remains the same. To change it: apps set-slug.
    """
    with open_database(load({})) as connection:
        rename_app(connection, find_app(connection, app), name)
    print_line(f"{app} is now called {name}")


@apps.command("set-slug")
@click.argument("app")
@click.argument("slug", type=SLUG)
def set_slug(app: str, slug: str) -> None:
    """Let SLUG stand for the id of an application in the path of requests.

    APP is its name or id. Every server rejects requests with the previous slug within two seconds.
    """
    with open_database(load({})) as connection:
        set_app_slug(connection, find_app(connection, app), slug)
    print_line(f"{app} now has the slug {slug}")


@apps.command("set-quota")
@click.argument("app")
@click.argument("events", type=click.IntRange(0, quota.MAX_QUOTA), required=False)
@click.option("--none", "unlimited", is_flag=True, help="Remove the quota.")
def set_quota(app: str, events: int | None, unlimited: bool) -> None:
    """Limit the EVENTS that an application can store per month.

    APP is its name or id. Months are calendar months in UTC. Events that are already stored this month count. All
    servers apply the quota when this command ends.
    """
    if (events is None) != unlimited:
        raise click.UsageError("specify either a number of events or --none")
    with open_database(load({})) as connection:
        quota.set_quota(connection, find_app(connection, app), events, sleep)
    print_line(f"{app} may store {'any number of events' if events is None else counted(events, 'event')} a month")


@apps.command("set-retention")
@click.argument("app")
@click.argument("days", type=click.IntRange(1, retention.MAX_DAYS), required=False)
@click.option("--default", is_flag=True, help="Apply the setting TK__RETENTION__DAYS.")
def set_retention(app: str, days: int | None, default: bool) -> None:
    """Set for how many DAYS an application's events are stored.

    APP is its name or id. The DAYS begin when the server receives an event. The servers delete older events within an
    hour; tkserver prune deletes them immediately.
    """
    if (days is None) != default:
        raise click.UsageError("specify either a number of days or --default")
    with open_database(load({})) as connection:
        found = find_app(connection, app)
        retention.set_retention(connection, found, days)
    period = "as long as TK__RETENTION__DAYS says" if days is None else f"for {counted(days, 'day')}"
    print_line(f"events of {found.name} are stored {period}")


@apps.command("set-timezone")
@click.argument("app")
@click.argument("timezone")
def set_timezone(app: str, timezone: str) -> None:
    """Set the TIMEZONE in which the statistics of an application divide time into days.

    APP is its name or id. TIMEZONE is a name such as Europe/Berlin or UTC. The statistics are computed again from the
    events; days whose events were deleted stay unchanged.
    """
    with open_database(load({})) as connection:
        found = find_app(connection, app)
        statistics.set_timezone(connection, found, timezone)
    print_line(f"the days of {found.name} are days in {timezone}")


@apps.command()
@click.argument("app")
@click.option("--slug", type=PUBLIC_SLUG, help="The name of the page in its path; by default, the slug of APP.")
@json_option
def publish(app: str, slug: str | None, as_json: bool) -> None:
    """Let everybody see totals of an application, on a page of the public port.

    APP is its name or id. The page shows users, runs, versions, systems, commands and features, one day behind. It
    shows no group of fewer than ten users. If APP is published already, --slug changes the path.
    """
    with open_database(load({})) as connection:
        found = find_app(connection, app)
        page = publishing.publish(connection, found, slug, datetime.now(timezone.utc), time.sleep)
    paths = {"page": page.path, "json": f"{page.path}.json", "badge": f"{page.path}/badge/users.svg"}
    print_record({"name": found.name, "slug": page.slug, **paths, "last_day": page.last_day}, as_json=as_json)
    if not as_json:
        print_line("Everybody who can reach the public port can see this page now.", error=True)


@apps.command()
@click.argument("app")
def unpublish(app: str) -> None:
    """Remove the public page of an application. APP is its name or id.

    Every server notices it within two seconds. Browsers and proxies may keep the page for an hour.
    """
    with open_database(load({})) as connection:
        slug = publishing.unpublish(connection, find_app(connection, app))
    print_line(f"/public/{slug} does not exist anymore")


@apps.command("promote")
@click.argument("app")
@yes_option
@dry_run_option
@json_option
def promote_(app: str, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Make a staging application an ordinary one.

    APP is its name or id. Its events and its statistics are deleted, and its limits are lifted. Its ids and tokens stay
    the same, so that programs need not be changed. This cannot be undone.
    """
    with open_database(load({})) as connection:
        found = find_app(connection, app)
        check_staging(found)
        if dry_run:
            print_record(_to_delete(connection, found), as_json=as_json)
            return
        confirm(lambda: f"Delete {counted(count_events(connection, found), 'event')} of {found.title}?", yes=yes)
        with progress_bar("deleting", lambda: count_events(connection, found)) as advance:
            deleted = promote(connection, found, time.monotonic, sleep, advance)
    ids = {"name": found.name, "org_id": found.org_id, "app_id": found.app_id}
    print_record({**ids, "deleted_from_events": deleted}, as_json=as_json)


@apps.command()
@click.argument("app")
@yes_option
@dry_run_option
@json_option
def delete(app: str, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Delete an application with its tokens, its events, and all other data about it.

    APP is its name or id. This cannot be undone. Every server stops accepting events of the application before its
    data is deleted, in short transactions, so that the servers do not become slow.
    """
    with open_database(load({})) as connection:
        found = find_app(connection, app)
        if dry_run:
            print_record(_to_delete(connection, found), as_json=as_json)
            return
        confirm(lambda: _deletion_of(connection, found), yes=yes)
        with progress_bar("deleting", lambda: count_events(connection, found)) as advance:
            deleted = delete_app(connection, found, time.monotonic, sleep, advance)
    ids = {"name": found.name, "org_id": found.org_id, "app_id": found.app_id}
    as_lines = {f"deleted_from_{table}": number for table, number in deleted.items()}
    print_record({**ids, **({"deleted": deleted} if as_json else as_lines)}, as_json=as_json)


def _to_delete(connection: Connection, app: App) -> Record:
    ids = {"name": app.name, "org_id": app.org_id, "app_id": app.app_id}
    return {**ids, "events_to_delete": count_events(connection, app)}


def _deletion_of(connection: Connection, app: App) -> str:
    return f"Delete {app.title}, its tokens and its {counted(count_events(connection, app), 'event')}?"


def credentials(token: Token) -> Record:
    """Return the data that a client needs to send events."""
    return {"org_id": token.org_id, "app_id": token.app_id, "token": token.token, "secret": token.secret}


def _sdk_settings(token: Token) -> str:
    """Return code for a program that uses the Rust SDK, with the server's default endpoint."""
    return f"""\
    SyncConfig::builder()
        .endpoint("http://127.0.0.1:3000")
        .org_id("{token.org_id}")?
        .app_id("{token.app_id}")?
        .token("{token.token}")
        .secret("{token.secret}")
        .build()?"""


def _record(app: App) -> Record:
    return {
        "name": app.name,
        "slug": app.slug,
        "org": app.org,
        "staging": app.staging,
        "org_id": app.org_id,
        "app_id": app.app_id,
        "active_tokens": app.active_tokens,
        "monthly_quota": app.monthly_quota,
        "retention_days": app.retention_days,
        "last_used_at": app.last_used_at,
        "created_at": app.created_at,
    }


def _row(app: App, recent: Record) -> Record:
    """Return a row of the table for people."""
    return {
        "name": None if app.name is None else app.title,
        "id": app.app_id,
        "events_30d": recent["events_30d"],
        "users_30d": recent["users_30d"],
        "last_event": recent["last_event_at"],
        "quota": app.monthly_quota,
    }


def _recent(activity: statistics.Activity) -> Record:
    return {
        "events_30d": activity.events,
        "users_30d": activity.users,
        "last_event_at": activity.last_event_at,
    }


def _quota_usage(app: App) -> Record:
    allowance = app.allowance
    return {
        "used_this_month": None if allowance is None else allowance.used,
        "quota_resets_at": None if allowance is None else allowance.resets_at,
    }
