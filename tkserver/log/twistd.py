"""Integration with ``twistd``: makes it use our log observer."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from twisted.application.internet import ClientService
from twisted.application.service import IService, MultiService
from twisted.logger import FilteringLogObserver, ILogFilterPredicate, ILogObserver, LogEvent, PredicateResult
from twisted.python.components import Componentized
from twisted.scripts.twistd import ServerOptions  # type: ignore[attr-defined]
from zope.interface import implementer

from tkserver.log import severity
from tkserver.log.access import AccessLog
from tkserver.log.formatters import (
    Formatter,
    format_coloured_text,
    format_json,
    format_text,
    format_text_without_time,
    level_of,
)
from tkserver.log.observer import FileSink, LineObserver, Sink, StreamSink, SyslogSink, log_uncaught_exceptions

DEFAULT_FILE = "twistd.log"


class _RunningTwistd(ServerOptions):
    def opt_reactor(self, _: str) -> None:
        """Ignore the option: the reactor is installed already."""


def running_twistd() -> Any:
    """Parse the options of the running ``twistd`` again, because a ``.tac`` file does not receive them."""
    options = _RunningTwistd()
    options.parseOptions()
    return options


class Logged(MultiService):
    """A service that makes ``twistd`` use our log observer, which it looks up as a component of the application.

    :param twistd: the options of ``twistd``. If they name an observer (``--logger``), ours is not used.
    :param level: less severe events are not written.
    :param log_format: ``text`` or ``json``.
    :param fail: ends the process with a message if the log cannot be opened.
    :param access_log: the access log of the service.
    """

    def __init__(
        self,
        service: IService,
        twistd: Mapping[str, Any],
        level: str,
        log_format: str,
        reactor: Any,
        fail: Callable[[str], NoReturn],
        access_log: AccessLog,
    ) -> None:
        super().__init__()
        self._twistd = twistd
        self._level = level
        self._log_format = log_format
        self._reactor = reactor
        self._fail = fail
        self._access_log = access_log
        service.setServiceParent(self)

    def setServiceParent(self, parent: Any) -> None:
        if isinstance(parent, Componentized) and not self._twistd.get("logger"):
            parent.setComponent(ILogObserver, self._observer())
        super().setServiceParent(parent)

    def _observer(self) -> ILogObserver:
        try:
            sink = open_sink(self._twistd)
        except OSError as error:
            self._fail(f"cannot write the log: {error}")
        # twistd rotates its own log file on this signal, too, unless the signal has a handler.
        if isinstance(sink, FileSink) and not signal.getsignal(signal.SIGUSR1):
            signal.signal(signal.SIGUSR1, lambda *_: self._reactor.callFromThread(sink.rotate))
        log_uncaught_exceptions()
        observer = LineObserver(_formatter(self._log_format, sink), sink, self._reactor)
        self._access_log.write_to(observer.write_request)
        predicates: list[Any] = [MinimumLevel(self._level), NoReconnections()]
        if self._log_format == "text" and self._level != "debug":
            predicates.append(NoFrameworkMessages())
        return FilteringLogObserver(observer, predicates)


@implementer(ILogFilterPredicate)
class MinimumLevel:
    """Accepts events that are at least as severe as a level.

    Twisted's ``LogLevelFilterPredicate`` drops events without a level, such as those of the legacy ``log.msg``.
    """

    def __init__(self, level: str) -> None:
        self._minimum = severity(level)

    def __call__(self, event: LogEvent) -> Any:
        return PredicateResult.maybe if severity(level_of(event)) >= self._minimum else PredicateResult.no


@implementer(ILogFilterPredicate)
class NoReconnections:
    """Rejects the messages of ``ClientService`` about attempts to reconnect.

    Our modules that use it log when the connection is lost and when it is available again.
    """

    def __call__(self, event: LogEvent) -> Any:
        return PredicateResult.no if isinstance(event.get("log_source"), ClientService) else PredicateResult.maybe


@implementer(ILogFilterPredicate)
class NoFrameworkMessages:
    """Rejects messages of Twisted that are no warnings, such as those about the reactor and about ports.

    Our modules log what people need to know about them.
    """

    def __call__(self, event: LogEvent) -> Any:
        namespace = str(event.get("log_namespace"))
        is_framework = namespace.startswith("twisted.") or (namespace == "log_legacy" and "warning" not in event)
        is_unimportant = severity(level_of(event)) < severity("warn")
        return PredicateResult.no if is_framework and is_unimportant else PredicateResult.maybe


def log_and_pid_file(twistd: Mapping[str, Any]) -> tuple[Path | None, Path | None]:
    """Return the log file and the file with the process id that the options of ``twistd`` name."""
    name, pid_file = twistd.get("logfile"), twistd.get("pidfile")
    is_file = name != "-" if name else not twistd.get("nodaemon")
    log_file = Path(name or DEFAULT_FILE).absolute() if is_file and not twistd.get("syslog") else None
    return log_file, Path(pid_file).absolute() if pid_file else None


def open_sink(twistd: Mapping[str, Any]) -> Sink:
    """Open the log that the options of ``twistd`` name, in the same way as ``twistd`` does.

    :raise OSError: if it cannot be opened.
    """
    if twistd.get("syslog"):
        return SyslogSink(twistd["prefix"])
    name, foreground = twistd.get("logfile"), bool(twistd.get("nodaemon"))
    if name == "-" and not foreground:
        sys.exit("Daemons cannot log to stdout, exiting!")
    if name == "-" or (foreground and not name):
        return StreamSink(sys.stdout.buffer)
    return FileSink(name or DEFAULT_FILE)


def _formatter(log_format: str, sink: Sink) -> Formatter:
    if log_format == "json":
        return format_json
    if isinstance(sink, SyslogSink):
        return format_text_without_time
    is_terminal = isinstance(sink, StreamSink) and shows_colours(os.environ, is_terminal=sys.stdout.isatty())
    return format_coloured_text if is_terminal else format_text


def shows_colours(environment: Mapping[str, str], *, is_terminal: bool) -> bool:
    """True if standard output shows colours. ``NO_COLOR`` and ``FORCE_COLOR`` decide, otherwise the kind of output."""
    if environment.get("NO_COLOR"):
        return False
    return bool(environment.get("FORCE_COLOR")) or (is_terminal and environment.get("TERM") != "dumb")
