"""Errors of operations. Their texts say what is wrong and what to do about it."""

from __future__ import annotations


class OperationError(Exception):
    """An operation was not performed."""


class InvalidArgument(OperationError):
    """An argument has a value that is never accepted."""


class UnknownObject(OperationError):
    """The organization, application, token or erasure does not exist."""


class NameTaken(OperationError):
    """Another application or organization has this name or slug, or this application has a name already."""


class UnnamedApplication(OperationError):
    """The application has no name yet, and therefore cannot have settings of its own."""


class UnnamedOrganization(OperationError):
    """The organization has no name yet, and therefore cannot have a slug."""


class MissingPackage(OperationError):
    """The operation needs an optional package that is not installed."""


class NotStaging(OperationError):
    """Only a staging application can be promoted."""
