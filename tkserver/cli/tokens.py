"""``tkserver tokens``: credentials, given out and taken back."""

from __future__ import annotations

import re
import secrets
from datetime import timedelta
from typing import Any

import click

from tkserver.cli.apps import credentials_of
from tkserver.cli.output import Record, json_option, print_record, print_records
from tkserver.operations.apps import TIERS, Token
from tkserver.operations.database import connected
from tkserver.storage.blocking import transaction

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Duration(click.ParamType[timedelta]):
    """A time such as ``90s``, ``30m``, ``24h`` or ``7d``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        match = re.fullmatch(r"(\d{1,6})([smhd])", value)
        if match is None:
            self.fail(f"{value!r} is no time such as 30m, 24h or 7d", param, ctx)
        return timedelta(**{_UNITS[match[2]]: int(match[1])})


@click.group()
def tokens() -> None:
    """Credentials: a token and a secret that an application's SDKs sign with."""


@tokens.command()
@click.argument("app")
@click.option("--tier", type=click.Choice(TIERS), default="free", show_default=True, help="Decides its rate limit.")
@json_option
def create(app: str, tier: str, as_json: bool) -> None:
    """Make another token for an application. Those that it has stay as they are."""
    with connected() as connection:
        of = registry.app(connection, app)
        token = registry.create_token(connection, of.org_id, of.app_id, tier, secrets.token_hex)
    print_record(credentials_of(token), as_json=as_json)


@tokens.command("list")
@click.argument("app", required=False)
@click.option("--show-secret", is_flag=True, help="Print the secrets too.")
@json_option
def list_(app: str | None, show_secret: bool, as_json: bool) -> None:
    """List the tokens of an application, or of all."""
    with connected() as connection:
        found = registry.tokens(connection, None if app is None else registry.app(connection, app))
    records = [_record(token, show_secret=show_secret) for token in found]
    print_records(records, as_json=as_json, empty="No tokens: tkserver tokens create APP")


@tokens.command()
@click.argument("app")
@click.option(
    "--overlap", type=Duration(), default="24h", show_default=True, help="For how long the old ones work as well."
)
@json_option
def rotate(app: str, overlap: timedelta, as_json: bool) -> None:
    """Make a new token for an application, and have its others end after an overlap.

    The new one has the tier of the newest old one.
    """
    with connected() as connection, transaction(connection):
        of = registry.app(connection, app)
        registry.lock_tokens(connection, of)
        old = [token for token in registry.tokens(connection, of) if token.is_active]
        tier = old[0].tier if old else "free"
        token = registry.create_token(connection, of.org_id, of.app_id, tier, secrets.token_hex)
        ending = registry.expire_others(connection, token, overlap)
    print_record(credentials_of(token), as_json=as_json)
    if not as_json:
        click.echo(f"\nStill active, for {overlap} at the most: {ending}. To end one now: tkserver tokens revoke TOKEN")


@tokens.command()
@click.argument("token")
def revoke(token: str) -> None:
    """Take a token back, by itself or its id. Every server refuses it within two seconds."""
    with connected() as connection:
        found = registry.token(connection, token)
        registry.revoke(connection, found)
    click.echo(f"revoked: {found.id}")


def _record(token: Token, *, show_secret: bool) -> Record:
    return {
        "id": token.id,
        "app_id": token.app_id,
        "token": token.token,
        **({"secret": token.secret} if show_secret else {}),
        "tier": token.tier,
        "active": token.is_active,
        "expires_at": token.expires_at,
        "last_used_at": token.last_used_at,
        "created_at": token.created_at,
    }
