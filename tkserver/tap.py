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
from tkserver.config import InvalidSettings, Settings, load, variable, variables
from tkserver.log.twistd import Logged, running_twistd

_log = log.logger(__name__)

_OPTIONS = {
    "host": "TK__SERVER__HOST",
    "port": "TK__SERVER__PORT",
    "endpoint": "TK__SERVER__ENDPOINT",
    "database-url": "TK__DATABASE__URL",
    "log-level": "TK__SERVER__LOG_LEVEL",
}
_DESCRIPTIONS = {name: description for name, _, description in variables()}


class Options(usage.Options):
    """``twistd tkserver``. Each option wins over its environment variable, and that over the ``.env`` file."""

    synopsis = "[options]"
    longdesc = "The ingestion server for the telemetry-kit SDKs. All settings are described in its README."
    optParameters: ClassVar[list[list[Any]]] = [
        [option, letter, None, f"{_DESCRIPTIONS[name]} [{name}]"]
        for (option, name), letter in zip(_OPTIONS.items(), ("H", "p", "e", "d", "l"), strict=True)
    ]

    def getSynopsis(self) -> str:
        return "Usage: twistd [twistd options] tkserver [options]"


def options_in_tac() -> Options:
    """For a ``.tac`` file, which ``twistd`` does not tell its own options."""
    options = Options()
    options.parent = running_twistd()
    return options


def makeService(options: Mapping[str, Any]) -> IService:  # noqa: N802 -- twistd's name for it
    """The service that the options, the environment and the ``.env`` file describe.

    The log is written in our way where the options know those of ``twistd``, as it passes them and
    :func:`options_in_tac` finds them; otherwise ``twistd`` writes it in its own.

    Ends the process, with one line on standard error, where they are wrong.
    """
    from twisted.internet import reactor

    from tkserver.service import TkServer
    from tkserver.storage.embedded import EmbeddedError

    overrides = {name: options[option] for option, name in _OPTIONS.items() if options.get(option) is not None}
    try:
        settings = load(overrides)
        log.set_level(settings.server.log_level)
        settings = _within_open_files(settings)
        server = TkServer(settings, reactor, _failing(reactor))
    except (InvalidSettings, EmbeddedError) as error:
        _exit(str(error))
    reactor.callWhenRunning(_stop_on_sigterm, reactor)
    twistd = getattr(options, "parent", None)
    if twistd is None:
        return server
    return Logged(server, twistd, settings.server.log_format, reactor, _exit, server.parts.access_log)


def _within_open_files(settings: Settings) -> Settings:
    """The settings, with no more connections than there are open files for: some are kept for all else."""
    wanted = settings.server.open_files
    allowed = _allow_open_files(wanted)
    connections = settings.server.connections_within(allowed)
    if allowed >= wanted:
        return settings
    _log.warn(
        "only {connections} connections at once, and not {cap}: this process may have {allowed} files open, and needs"
        " {wanted}; raise that limit (ulimit -Hn, LimitNOFILE), or lower {variable}",
        connections=connections,
        cap=settings.server.max_connections,
        allowed=allowed,
        wanted=wanted,
        variable=variable("server", "max_connections"),
        event="connections_lowered",
    )
    server = settings.server.model_copy(update={"max_connections": connections})
    return settings.model_copy(update={"server": server})


def _allow_open_files(wanted: int) -> int:
    """Ask for as many open files as all connections together may need, and say how many this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else soft


def _exit(line: str) -> NoReturn:
    print(f"tkserver: {line}", file=sys.stderr)
    raise SystemExit(1)


def _failing(reactor: Any) -> Callable[[str], None]:
    """What ends a process that is already running: a line in the log, an orderly stop, and exit code 1."""

    def fail(line: str) -> None:
        _log.critical("{line}", line=line, event="fatal")
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
