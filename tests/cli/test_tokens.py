"""``tkserver tokens``: tokens are created, rotated and revoked."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from tests.support.blocking_client import post_batch
from tests.support.client import App, batch
from tests.support.command import InProcessCommand
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.process import Twistd
from tests.support.waiting import wait_for


def is_accepted(server: Twistd, app: App) -> bool:
    """Return true if a server accepts an event with these credentials."""
    return post_batch(server.url, app, batch([make_event()])) == 200


def test_old_token_works_until_the_overlap_ends(tkserver: InProcessCommand, twistd: Twistd) -> None:
    """After a rotation, both tokens work until the overlap ends, and then only the new one."""
    old = tkserver("apps", "create", "a", "--tier", "business", "--json").app
    assert is_accepted(twistd, old)
    new = tkserver("tokens", "rotate", "a", "--overlap", "3s", "--json").app
    end = time.monotonic() + 3
    assert is_accepted(twistd, old)
    assert is_accepted(twistd, new)
    wait_for(lambda: not is_accepted(twistd, old))
    assert time.monotonic() > end - 0.5
    assert is_accepted(twistd, new)
    listed = tkserver("tokens", "list", "a", "--json").json
    assert [(token["active"], token["tier"]) for token in listed] == [(True, "business"), (False, "business")]


def test_rotation_reports_older_tokens(tkserver: InProcessCommand) -> None:
    """A rotation prints how many older tokens remain active, and how to revoke them, unless it prints JSON."""
    tkserver("apps", "create", "a")
    output = tkserver("tokens", "rotate", "a", "--overlap", "30m").out
    assert "Active for at most 30 minutes: 1 older token. " in output
    assert "tkserver tokens revoke TOKEN" in output


def test_revoked_token_is_rejected(tkserver: InProcessCommand, twistd: Twistd) -> None:
    """A server rejects a revoked token within two seconds, and still accepts the application's other tokens."""
    first = tkserver("apps", "create", "a", "--json").app
    second = tkserver("tokens", "create", "a", "--json").app
    assert is_accepted(twistd, first)
    assert is_accepted(twistd, second)
    tkserver("tokens", "revoke", first.token)
    started = time.monotonic()
    wait_for(lambda: not is_accepted(twistd, first))
    assert time.monotonic() - started < 2
    assert is_accepted(twistd, second)
    assert "tokens list" in tkserver("tokens", "revoke", "nope", code=3).errors


def test_secrets_are_printed_only_on_request(tkserver: InProcessCommand) -> None:
    """A secret is printed when it is created, and later only with ``--show-secret``."""
    secret = tkserver("apps", "create", "a", "--json").json["secret"]
    assert secret not in tkserver("tokens", "list").out + tkserver("tokens", "list", "--json").out
    assert secret in tkserver("tokens", "list", "--show-secret").out


def test_invalid_overlap_is_wrong_usage(tkserver: InProcessCommand) -> None:
    """An invalid duration is an error, which contains an example."""
    tkserver("apps", "create", "a")
    assert "24h" in tkserver("tokens", "rotate", "a", "--overlap", "tomorrow", code=2).errors


def test_read_tokens_are_stored_as_hashes(tkserver: InProcessCommand, database: Database) -> None:
    """A token to read is shown once, is listed without itself, and is stored only as a hash."""
    app = tkserver("apps", "create", "a", "--json").app
    created = tkserver("tokens", "create", "a", "--read", "--json").json
    everything = tkserver("tokens", "create", "--read", "--all", "--json").json
    assert (created["app_id"], everything["app_id"]) == (app.app_id, None)
    assert len({created["token"], everything["token"], app.token}) == 3
    assert len(created["token"].removeprefix("tkr_")) * 4 == 256
    stored = str(database.query("SELECT r::text, encode(token_hash, 'escape') FROM read_tokens AS r"))
    listed = tkserver("tokens", "list", "--show-secret").out + tkserver("tokens", "list", "--json").out
    for secret in (created["token"], everything["token"]):
        assert secret not in stored + listed
        assert secret.removeprefix("tkr_") not in stored
    kinds = [(token["kind"], token["app_id"]) for token in tkserver("tokens", "list", "--json").json]
    assert sorted(kinds, key=str) == [("read", app.app_id), ("read", None), ("send", app.app_id)]
    assert len(tkserver("tokens", "list", "a", "--json").json) == 2, "only those of this application"


@pytest.mark.parametrize("by", ["token", "id"])
def test_read_tokens_can_be_revoked(tkserver: InProcessCommand, by: str) -> None:
    """A token to read is revoked by itself or by its id; others stay active."""
    created = [tkserver("tokens", "create", "--read", "--all", "--json").json for _ in range(2)]
    assert tkserver("tokens", "revoke", created[0][by]).out == f"revoked: {created[0]['id']}\n"
    active = {token["id"]: token["active"] for token in tkserver("tokens", "list", "--json").json}
    assert active == {created[0]["id"]: False, created[1]["id"]: True}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name an application"),
        (("--read",), "name an application, or use --all"),
        (("--all",), "use --read --all"),
        (("a", "--all"), "use --read --all"),
        (("a", "--read", "--all"), "use either APP or --all"),
    ],
)
def test_scope_of_a_token(tkserver: InProcessCommand, arguments: tuple[str, ...], message: str) -> None:
    """A token is for one application; only a token to read can be for all, and only if that is said."""
    tkserver("apps", "create", "a")
    assert message in tkserver("tokens", "create", *arguments, code=2).errors


def test_read_tokens_cannot_send(tkserver: InProcessCommand, twistd: Twistd) -> None:
    """A token to read does not authenticate events."""
    app = tkserver("apps", "create", "a", "--json").app
    token = tkserver("tokens", "create", "a", "--read", "--json").json["token"]
    assert post_batch(twistd.url, replace(app, token=token), batch([make_event()])) == 401


def test_deletion_of_an_application_deletes_its_read_tokens(tkserver: InProcessCommand, database: Database) -> None:
    """No token of a deleted application is left; those for all applications are."""
    tkserver("apps", "create", "a")
    tkserver("tokens", "create", "a", "--read")
    tkserver("tokens", "create", "--read", "--all")
    tkserver("apps", "delete", "a", "--yes")
    assert database.query("SELECT app_id FROM read_tokens") == [(None,)]
