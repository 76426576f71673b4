"""Errors of commands: a line on standard error, and an exit code for scripts."""

from __future__ import annotations

from typing import Any

import click

from tkserver.cli.output import printable
from tkserver.config import InvalidSettings
from tkserver.operations.exceptions import InvalidArgument, OperationError, UnknownObject
from tkserver.storage.embedded.exceptions import EmbeddedError
from tkserver.storage.errors import StorageError
from tkserver.storage.migrations import IncompatibleDatabase


class Failed(click.ClickException):
    """The command failed."""

    exit_code = 1


class WrongUsage(click.ClickException):
    """The settings or the arguments cannot be used."""

    exit_code = 2


class NotFound(click.ClickException):
    """The object does not exist."""

    exit_code = 3


class DatabaseUnavailable(click.ClickException):
    """The database cannot be used now."""

    exit_code = 4


class CommandGroup(click.Group):
    """A group of commands that prints expected errors without a traceback, and without control characters."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return self._invoke(ctx)
        except click.ClickException as error:
            _make_printable(error)
            raise

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UnicodeEncodeError:
            raise click.UsageError("an argument is not valid UTF-8") from None
        except (InvalidSettings, InvalidArgument) as error:
            raise WrongUsage(str(error)) from None
        except UnknownObject as error:
            raise NotFound(str(error)) from None
        except (OperationError, EmbeddedError, IncompatibleDatabase) as error:
            raise Failed(str(error)) from None
        except StorageError as error:
            raise DatabaseUnavailable(f"the database cannot be used now: {error}") from None


def _make_printable(error: click.ClickException) -> None:
    """Replace control characters in the message of an error."""
    vars(error)["message"] = printable(error.message)
