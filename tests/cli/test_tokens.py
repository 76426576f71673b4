"""``tkserver tokens``: tokens are created, rotated and revoked."""

from __future__ import annotations

import time

from tests.support.blocking_client import post_batch
from tests.support.client import App, batch
from tests.support.command import InProcessCommand
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
    """For people, a rotation prints how many older tokens remain active and how to revoke them."""
    tkserver("apps", "create", "a")
    output = tkserver("tokens", "rotate", "a", "--overlap", "30m").out
    assert "Older tokens that remain active for at most 0:30:00: 1. " in output
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
