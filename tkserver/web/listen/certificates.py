"""TLS certificates that are renewed while the server runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from OpenSSL.SSL import Connection, Context
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from zope.interface import implementer

from tkserver import log

_log = log.logger(__name__)

RENEWED_AFTER = 60.0
"""Seconds for which a certificate is used before its file is looked at again."""


@implementer(IOpenSSLServerConnectionCreator)
class RenewingCertificate:
    """Serves each new connection with the certificate that is in the files now, give or take a minute.

    Where they cannot be read, or key and certificate do not go together because only one of them has been written yet,
    the one before stays.

    :param read: reads the files.
    :param clock: gives seconds, on any scale.
    """

    def __init__(self, context: Context, read: Callable[[], Context], clock: Callable[[], float]) -> None:
        self._context = context
        self._read = read
        self._clock = clock
        self._stale_from = clock() + RENEWED_AFTER
        self._complained = False

    def serverConnectionForTLS(self, protocol: Any) -> Connection:  # noqa: ARG002 -- one certificate for all
        """What encrypts a new connection."""
        if self._clock() >= self._stale_from:
            self._stale_from = self._clock() + RENEWED_AFTER
            self._renew()
        return Connection(self._context, None)

    def _renew(self) -> None:
        try:
            self._context = self._read()
        except Exception as error:  # of files or of OpenSSL, whose errors have no common ancestor
            if not self._complained:
                _log.warn(
                    "the certificate cannot be read again, the one before is used: {error}",
                    error=repr(error),
                    event="certificate_unreadable",
                )
            self._complained = True
        else:
            self._complained = False
