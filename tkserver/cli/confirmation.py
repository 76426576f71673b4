"""Confirmation of commands that cannot be undone."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from tkserver.cli.output import printable


def confirm(question: Callable[[], str], *, yes: bool) -> None:
    """Ask on the terminal whether to go on. End the command if not.

    :param question: returns the question; called only if it is asked.
    :param yes: do not ask.
    """
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask for confirmation: specify --yes")
    click.confirm(printable(question()), abort=True, err=True)
