"""Confirmation of commands that cannot be undone."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from tkserver.cli.output import printable
from tkserver.cli.waiting import not_waiting


def yes_option(command: Callable[..., object]) -> Callable[..., object]:
    """Add the option ``--yes``."""
    return click.option("--yes", is_flag=True, help="Do not ask for confirmation.")(command)


def dry_run_option(command: Callable[..., object]) -> Callable[..., object]:
    """Add the option ``--dry-run``."""
    return click.option("--dry-run", is_flag=True, help="Print what would happen, and do nothing.")(command)


def confirm(question: Callable[[], str], *, yes: bool, without_terminal: bool = False) -> None:
    """Ask on the terminal whether to go on. End the command if not.

    :param question: returns the question; called only if it is asked.
    :param yes: do not ask.
    :param without_terminal: true if scripts need not specify ``--yes``.
    """
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        if without_terminal:
            return
        raise click.UsageError("there is no terminal to ask for confirmation: specify --yes")
    text = printable(question())
    with not_waiting():
        click.confirm(text, abort=True, err=True)
