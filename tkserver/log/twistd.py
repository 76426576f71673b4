"""How ``twistd`` is told who writes its log."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from twisted.application.service import IService, MultiService
from twisted.logger import ILogObserver
from twisted.python.components import Componentized
from twisted.scripts.twistd import ServerOptions  # type: ignore[attr-defined]

from tkserver.log import lines
from tkserver.log.access import AccessLog
from tkserver.log.lines import Render
from tkserver.log.observer import LineObserver, log_uncaught
from tkserver.log.output import FileOutput, Output, StreamOutput, SyslogOutput

DEFAULT_FILE = "twistd.log"


class _RunningTwistd(ServerOptions):
    def opt_reactor(self, _: str) -> None:
        """There is one already."""


def running_twistd() -> Any:
    """The options of the ``twistd`` that runs this, read once more: a ``.tac`` file is not told them."""
    options = _RunningTwistd()
    options.parseOptions()
    return options


class Logged(MultiService):
    """A service that has the application's log written our way: by a component, which ``twistd`` looks for.

    :param twistd: its options. Where they name an observer (``--logger``), that one is left alone.
    :param log_format: ``text`` or ``json``.
    :param fail: ends the process with a line, where the log cannot be written.
    :param access_log: of the service; is told who writes its lines.
    """

    def __init__(
        self,
        service: IService,
        twistd: Mapping[str, Any],
        log_format: str,
        reactor: Any,
        fail: Callable[[str], NoReturn],
        access_log: AccessLog,
    ) -> None:
        super().__init__()
        self._twistd = twistd
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
            output = output_for(self._twistd)
        except OSError as error:
            self._fail(f"cannot write the log: {error}")
        # As twistd does, unless somebody has another use for the signal.
        if isinstance(output, FileOutput) and not signal.getsignal(signal.SIGUSR1):
            signal.signal(signal.SIGUSR1, lambda *_: self._reactor.callFromThread(output.rotate))
        log_uncaught()
        observer = LineObserver(_rendering(self._log_format, output), output, self._reactor)
        self._access_log.write_to(observer.write_request)
        return observer


def output_for(twistd: Mapping[str, Any]) -> Output:
    """Where its options say that lines go, opened as it opens it.

    :raise OSError: when it cannot be opened.
    """
    if twistd.get("syslog"):
        return SyslogOutput(twistd["prefix"])
    name, foreground = twistd.get("logfile"), bool(twistd.get("nodaemon"))
    if name == "-" and not foreground:
        sys.exit("Daemons cannot log to stdout, exiting!")
    if name == "-" or (foreground and not name):
        return StreamOutput(sys.stdout.buffer)
    return FileOutput(name or DEFAULT_FILE)


def _rendering(log_format: str, output: Output) -> Render:
    if log_format == "json":
        return lines.json
    return lines.text_without_time if isinstance(output, SyslogOutput) else lines.text
