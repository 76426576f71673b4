"""``tkserver tokens``: tokens and secrets of applications."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from uuid import UUID

import click

from tkserver.cli.apps import credentials
from tkserver.cli.confirmation import confirm, dry_run_option, yes_option
from tkserver.cli.database import open_database
from tkserver.cli.output import (
    Record,
    counted,
    duration,
    json_option,
    print_line,
    print_record,
    print_records,
    text_of,
)
from tkserver.cli.parameters import Duration
from tkserver.config import load
from tkserver.operations.apps import find_app, list_apps
from tkserver.operations.models import TIERS, Token
from tkserver.operations.read_tokens import (
    ReadToken,
    create_read_token,
    find_read_token,
    list_read_tokens,
    revoke_read_token,
)
from tkserver.operations.tokens import create_token, find_token, list_tokens, revoke_token, rotate_tokens
from tkserver.storage.blocking import Connection, transaction


@click.group()
def tokens() -> None:
    """Manage tokens: those with a secret, which sign events, and those that allow to read statistics."""


@tokens.command()
@click.argument("app", required=False)
@click.option(
    "--tier", type=click.Choice(TIERS), default="free", show_default=True, help="Selects the rate limit of the token."
)
@click.option("--read", is_flag=True, help="The token allows to read statistics, and nothing else.")
@click.option("--all", "all_apps", is_flag=True, help="With --read and without APP: for all applications.")
@json_option
def create(app: str | None, tier: str, read: bool, all_apps: bool, as_json: bool) -> None:
    """Create another token for an application.

    APP is its name or id. Existing tokens do not change.

    With --read, the token is shown only now: the database contains only its hash.
    """
    _check_scope(app, read=read, all_apps=all_apps)
    with open_database(load({})) as connection, transaction(connection):  # nothing is created if it cannot be printed
        found = None if app is None else find_app(connection, app)
        if read:
            record = _read_credentials(*create_read_token(connection, found))
        else:
            assert found is not None  # see _check_scope
            record = credentials(create_token(connection, found.org_id, found.app_id, tier))
        print_record(record, as_json=as_json)


def _check_scope(app: str | None, *, read: bool, all_apps: bool) -> None:
    """Check that a token is for one application, or that a token to read is for all."""
    if all_apps and not read:
        raise click.UsageError("only a token to read can be for all applications: use --read --all")
    if all_apps and app is not None:
        raise click.UsageError("use either APP or --all")
    if app is None and not all_apps:
        raise click.UsageError("name an application" + (", or use --all" if read else ""))


def _read_credentials(row: ReadToken, token: str) -> Record:
    """Return the data that a client needs to read statistics."""
    return {"id": row.id, "org_id": row.org_id, "app_id": row.app_id, "token": token}


@tokens.command("list")
@click.argument("app", required=False)
@click.option("--show-secret", is_flag=True, help="Print the secrets too.")
@json_option
def list_(app: str | None, show_secret: bool, as_json: bool) -> None:
    """List the tokens of one application or of all.

    APP is its name or id. Tokens to read statistics are listed without the token itself, which is not stored; those
    without an application are for all applications.
    """
    with open_database(load({})) as connection:
        selected = None if app is None else find_app(connection, app)
        found, readers = list_tokens(connection, selected), list_read_tokens(connection, selected)
        names = {app.app_id: app.title for app in list_apps(connection)}
    records = [_record(token, show_secret=show_secret) for token in found]
    records += [_read_record(token, show_secret=show_secret) for token in readers]
    empty = "No tokens. Create one with: tkserver tokens create APP"
    table = [_row(record, names) for record in records]
    print_records(records, as_json=as_json, empty=empty, table=table)


@tokens.command()
@click.argument("app")
@click.option(
    "--overlap", type=Duration(), default="24h", show_default=True, help="How long the old tokens remain active."
)
@json_option
def rotate(app: str, overlap: timedelta, as_json: bool) -> None:
    """Create a new token and let the other tokens expire.

    APP is the name or id of the application. The new token has the tier of the newest active token.
    """
    with open_database(load({})) as connection, transaction(connection):  # nothing changes if it cannot be printed
        rotation = rotate_tokens(connection, find_app(connection, app), overlap)
        print_record(credentials(rotation.token), as_json=as_json)
        if not as_json:
            click.echo(f"\n{_overlap(rotation.expiring, overlap)}")


def _overlap(expiring: int, overlap: timedelta) -> str:
    """Return what happens to older tokens."""
    if not expiring:
        return "There were no other active tokens."
    older = counted(expiring, "older token")
    if not overlap:
        return f"No longer active: {older}."
    return f"Active for at most {duration(overlap)}: {older}. To revoke one now: tkserver tokens revoke TOKEN"


@tokens.command()
@click.argument("token")
@yes_option
@dry_run_option
def revoke(token: str, yes: bool, dry_run: bool) -> None:
    """Revoke a token.

    TOKEN is the token or its id. Every server rejects it within two seconds. Stored events stay.
    """
    with open_database(load({})) as connection:
        found = find_read_token(connection, token) or find_token(connection, token)
        if dry_run:
            print_line(_effect(connection, found))
            return
        confirm(lambda: f"{_effect(connection, found)} Revoke it?", yes=yes, without_terminal=True)
        if isinstance(found, ReadToken):
            revoke_read_token(connection, found)
        else:
            revoke_token(connection, found)
    click.echo(f"revoked: {found.id}")


def _effect(connection: Connection, token: Token | ReadToken) -> str:
    """Return what happens if a token is revoked."""
    if isinstance(token, ReadToken):
        return f"Programs can no longer read statistics with the token {token.id}."
    if not token.is_active:
        return f"The token {token.id} is not active already."
    app = find_app(connection, f"{token.org_id}/{token.app_id}")
    used = text_of(token.last_used_at) if token.last_used_at else "never"
    others = counted(app.active_tokens - 1, "other active token")
    return (
        f"Programs can no longer send events of {app.title} with the token {token.id} (last used: {used}). Stored"
        f" events are not affected. The application has {others}."
    )


def _row(record: Record, names: Mapping[UUID, str]) -> Record:
    """Return a row of the table for people. It contains the token itself only together with the secret."""
    app_id = record["app_id"]
    credentials = {name: record[name] for name in ("token", "secret") if "secret" in record}
    return {
        "app": "all" if app_id is None else names.get(app_id, str(app_id)),
        "id": record["id"],
        "tier": record["tier"] or "read",
        "active": record["active"],
        "last_used": record["last_used_at"],
        "expires": record["expires_at"],
        **credentials,
    }


def _record(token: Token, *, show_secret: bool) -> Record:
    return {
        "id": token.id,
        "kind": "send",
        "app_id": token.app_id,
        "token": token.token,
        **({"secret": token.secret} if show_secret else {}),
        "tier": token.tier,
        "active": token.is_active,
        "expires_at": token.expires_at,
        "last_used_at": token.last_used_at,
        "created_at": token.created_at,
    }


def _read_record(token: ReadToken, *, show_secret: bool) -> Record:
    return {
        "id": token.id,
        "kind": "read",
        "app_id": token.app_id,
        "token": None,
        **({"secret": None} if show_secret else {}),
        "tier": None,
        "active": token.is_active,
        "expires_at": None,
        "last_used_at": None,
        "created_at": token.created_at,
    }
