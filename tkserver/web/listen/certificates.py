"""TLS certificates that can be renewed while the server runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from OpenSSL.SSL import Connection, Context
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from zope.interface import implementer

from tkserver import log

_log = log.logger(__name__)

RELOAD_INTERVAL = 60.0
"""Seconds after which the files of a certificate are read again."""


@implementer(IOpenSSLServerConnectionCreator)
class ReloadingCertificate:
    """Uses a certificate for new connections, and reads its files again at intervals.

    If they cannot be read, or if key and certificate do not match because only one of them has been replaced yet, the
    previous certificate is used.

    :param load: reads the files.
    :param clock: returns seconds, on any scale.
    """

    def __init__(self, context: Context, load: Callable[[], Context], clock: Callable[[], float]) -> None:
        self._context = context
        self._load = load
        self._clock = clock
        self._reload_at = clock() + RELOAD_INTERVAL
        self._problem_logged = False

    def serverConnectionForTLS(self, protocol: Any) -> Connection:  # noqa: ARG002 -- all connections use one certificate
        """Return an object that encrypts a new connection."""
        if self._clock() >= self._reload_at:
            self._reload_at = self._clock() + RELOAD_INTERVAL
            self.reload()
        return Connection(self._context, None)

    def reload(self) -> None:
        """Read the files again. If that fails, log it once, and keep the previous certificate."""
        try:
            self._context = self._load()
        except Exception as error:  # from files or from OpenSSL, which have no common base class
            if not self._problem_logged:
                _log.warn(
                    "the certificate cannot be read again, the previous one is used: {error}",
                    error=repr(error),
                    event="certificate_unreadable",
                )
            self._problem_logged = True
        else:
            self._problem_logged = False
