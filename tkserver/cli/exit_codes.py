"""Users' mistakes and the world's, each as a line on standard error and an exit code that scripts can use."""

from __future__ import annotations

from typing import Any

import click

from tkserver.config import InvalidSettings
from tkserver.operations.apps import NameTaken, Unknown, Unnamed
from tkserver.storage.embedded.postgres import EmbeddedError
from tkserver.storage.errors import DriverError, StorageError, translate
from tkserver.storage.migrations import IncompatibleDatabase


class Failed(click.ClickException):
    """It could not be done."""

    exit_code = 1


class WrongSettings(click.ClickException):
    """As wrong usage is."""

    exit_code = 2


class NotFound(click.ClickException):
    """There is no such thing."""

    exit_code = 3


class DatabaseUnavailable(click.ClickException):
    """It may work later."""

    exit_code = 4


class CommandGroup(click.Group):
    """A group of commands whose errors are lines of text, and no tracebacks."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InvalidSettings as error:
            raise WrongSettings(str(error)) from None
        except UnicodeEncodeError:
            raise click.UsageError("an argument is not UTF-8") from None
        except Unknown as error:
            raise NotFound(str(error)) from None
        except (NameTaken, Unnamed, EmbeddedError, IncompatibleDatabase) as error:
            raise Failed(str(error)) from None
        except (StorageError, DriverError) as error:
            problem = translate(error)
            if problem is None:
                raise
            raise DatabaseUnavailable(f"the database cannot do this now: {problem}") from None
