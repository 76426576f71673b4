"""``tkserver serve``: the server in the foreground."""

from __future__ import annotations

import sys

import click


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def serve(arguments: tuple[str, ...]) -> None:
    """Start the server in the foreground: the same as twistd -n --pidfile= tkserver.

    ARGUMENTS are the options of that command; "twistd tkserver --help" describes them.
    """
    from twisted.scripts.twistd import run  # it needs 0.2 s, which other commands can do without

    sys.argv = ["twistd", "-n", "--pidfile=", "tkserver", *arguments]
    run()  # type: ignore[no-untyped-call]
