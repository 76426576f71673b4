"""``tkserver tokens``: tokens and secrets of applications."""

from __future__ import annotations

from datetime import timedelta

import click

from tkserver.cli.apps import credentials
from tkserver.cli.output import Record, json_option, print_record, print_records
from tkserver.cli.parameters import Duration
from tkserver.config import load
from tkserver.operations.apps import find_app
from tkserver.operations.database import open_database
from tkserver.operations.models import TIERS, Token
from tkserver.operations.tokens import create_token, find_token, list_tokens, revoke_token, rotate_tokens


@click.group()
def tokens() -> None:
    """Manage tokens and their secrets, which sign requests."""


@tokens.command()
@click.argument("app")
@click.option(
    "--tier", type=click.Choice(TIERS), default="free", show_default=True, help="Selects the rate limit of the token."
)
@json_option
def create(app: str, tier: str, as_json: bool) -> None:
    """Create another token for an application.

    APP is its name or id. Existing tokens do not change.
    """
    with open_database(load({})) as connection:
        found = find_app(connection, app)
        token = create_token(connection, found.org_id, found.app_id, tier)
    print_record(credentials(token), as_json=as_json)


@tokens.command("list")
@click.argument("app", required=False)
@click.option("--show-secret", is_flag=True, help="Print the secrets too.")
@json_option
def list_(app: str | None, show_secret: bool, as_json: bool) -> None:
    """List the tokens of one application or of all.

    APP is its name or id.
    """
    with open_database(load({})) as connection:
        found = list_tokens(connection, None if app is None else find_app(connection, app))
    records = [_record(token, show_secret=show_secret) for token in found]
    print_records(records, as_json=as_json, empty="No tokens. Create one with: tkserver tokens create APP")


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
    with open_database(load({})) as connection:
        rotation = rotate_tokens(connection, find_app(connection, app), overlap)
    print_record(credentials(rotation.token), as_json=as_json)
    if not as_json:
        click.echo(
            f"\nOlder tokens that remain active for at most {overlap}: {rotation.expiring}."
            " To revoke one now: tkserver tokens revoke TOKEN"
        )


@tokens.command()
@click.argument("token")
def revoke(token: str) -> None:
    """Revoke a token.

    TOKEN is the token or its id. Every server rejects it within two seconds.
    """
    with open_database(load({})) as connection:
        found = find_token(connection, token)
        revoke_token(connection, found)
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
