"""What ``twistd tkserver`` starts: its options, and the service made of them. Alone touches the global reactor."""

from __future__ import annotations

import atexit
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn

from twisted.application.service import IService
from twisted.python import usage

from tkserver import log
from tkserver.config import InvalidSettings, load, variables

_log = log.logger(__name__)

_OPTIONS = {
    "host": "TK__SERVER__HOST",
    "port": "TK__SERVER__PORT",
    "database-url": "TK__DATABASE__URL",
    "log-level": "TK__SERVER__LOG_LEVEL",
}
_DESCRIPTIONS = {name: description for name, _, description in variables()}


class Options(usage.Options):
    """``twistd tkserver``. Each option wins over its environment variable, and that over the ``.env`` file."""

    synopsis = "[options]"
    longdesc = "The ingestion server for the telemetry-kit SDKs. All settings are described in its README."
    optParameters: ClassVar[list[list[Any]]] = [
        [option, letter, None, f"{_DESCRIPTIONS[variable]} [{variable}]"]
        for (option, variable), letter in zip(_OPTIONS.items(), ("H", "p", "d", "l"), strict=True)
    ]

    def getSynopsis(self) -> str:
        return "Usage: twistd [twistd options] tkserver [options]"


def makeService(options: Mapping[str, Any]) -> IService:  # noqa: N802 -- twistd's name for it
    """The service that the options, the environment and the ``.env`` file describe.

    Ends the process, with one line on standard error, where they are wrong.
    """
    from twisted.internet import reactor

    from tkserver.service import TkServer
    from tkserver.storage.embedded import EmbeddedError

    overrides = {variable: options[option] for option, variable in _OPTIONS.items() if options.get(option) is not None}
    try:
        settings = load(overrides)
        log.set_level(settings.server.log_level)
        service = TkServer(settings, reactor, _failing(reactor))
    except (InvalidSettings, EmbeddedError) as error:
        _exit(str(error))
    _allow_open_files(settings.server.open_files)
    reactor.callWhenRunning(_stop_on_sigterm, reactor)
    return service


def _allow_open_files(number: int) -> None:
    """Ask for as many open files as all connections together may need, as far as this process may have them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _exit(line: str) -> NoReturn:
    print(f"tkserver: {line}", file=sys.stderr)
    raise SystemExit(1)


def _failing(reactor: Any) -> Callable[[str], None]:
    """What ends a process that is already running: a line in the log, an orderly stop, and exit code 1."""

    def fail(line: str) -> None:
        _log.critical("{line}", line=line)
        # twistd has no exit code of its own to give; this comes after it has tidied up.
        atexit.register(_exit_at_last, 1)
        reactor.callWhenRunning(reactor.stop)

    return fail


def _exit_at_last(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _stop_on_sigterm(reactor: Any) -> None:
    """Take SIGTERM for the order to stop that it is. twistd would stop too, and then die of the signal."""

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is stopping already
        reactor.callFromThread(reactor.stop)

    signal.signal(signal.SIGTERM, stop)
