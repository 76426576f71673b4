"""The ``twistd`` plugin: command-line options, and the service that is made of them.

This is the only module that uses the global reactor.
"""

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
from tkserver.log.twistd import Logged, log_and_pid_file, running_twistd

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
    """Options of ``twistd tkserver``. They take precedence over the environment, and that over the ``.env`` file."""

    synopsis = "[options]"
    longdesc = "The ingestion server for the telemetry-kit SDKs. docs/settings.md describes all settings."
    optParameters: ClassVar[list[list[Any]]] = [
        [option, letter, None, f"{_DESCRIPTIONS[name]} [{name}]"]
        for (option, name), letter in zip(_OPTIONS.items(), ("H", "p", "e", "d", "l"), strict=True)
    ]

    def getSynopsis(self) -> str:
        return "Usage: twistd [twistd options] tkserver [options]"


def options_in_tac() -> Options:
    """Return options for a ``.tac`` file, which ``twistd`` does not pass its own options."""
    options = Options()
    options.parent = running_twistd()
    return options


def makeService(options: Mapping[str, Any]) -> IService:  # noqa: N802 -- twistd's name for it
    """Return the service for the options, the environment and the ``.env`` file.

    The service writes the log in our format if the options include those of ``twistd`` (``parent``); otherwise,
    ``twistd`` writes it in its own.

    If a setting is invalid, the process ends with one line on standard error.
    """
    from twisted.internet import reactor

    from tkserver.server.privileges import Privileges
    from tkserver.server.supervisor import Supervisor
    from tkserver.storage.embedded.exceptions import EmbeddedError

    overrides = {name: options[option] for option, name in _OPTIONS.items() if options.get(option) is not None}
    try:
        settings = _limit_connections(load(overrides))
        twistd = getattr(options, "parent", None)
        privileges = Privileges(settings.server.user, *log_and_pid_file(twistd or {}))
        supervisor = Supervisor(settings, reactor, _fail_with(reactor), privileges)
    except (InvalidSettings, EmbeddedError) as error:
        _exit(str(error))
    _stop_on_signals(reactor)
    if twistd is None:
        return supervisor
    server, access_log = settings.server, supervisor.worker.components.access_log
    return Logged(supervisor, twistd, server.log_level, server.log_format, reactor, _exit, access_log)


def _limit_connections(settings: Settings) -> Settings:
    """Return the settings with no more connections than the limit of open files allows, and log if that is fewer."""
    wanted = settings.server.open_files
    allowed = _raise_open_files(wanted)
    connections = settings.server.connections_within(allowed)
    if allowed >= wanted:
        return settings
    _log.warn(
        "only {connections} connections are possible instead of {cap}: the limit of open files is {allowed}, and"
        " {wanted} are needed; raise the limit (ulimit -Hn, LimitNOFILE), or lower {variable}",
        connections=connections,
        cap=settings.server.max_connections,
        allowed=allowed,
        wanted=wanted,
        variable=variable("server", "max_connections"),
        event="connections_lowered",
    )
    server = settings.server.model_copy(update={"max_connections": connections})
    return settings.model_copy(update={"server": server})


def _raise_open_files(wanted: int) -> int:
    """Raise the soft limit of open files as far as needed and possible, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else soft


def _exit(message: str) -> NoReturn:
    print(f"tkserver: {message}", file=sys.stderr)
    raise SystemExit(1)


def _fail_with(reactor: Any) -> Callable[[str], None]:
    """Return a function that ends the running process: it logs a message, stops the reactor, and exits with 1."""

    def fail(message: str) -> None:
        _log.critical("{line}", line=message, event="fatal")
        # twistd offers no way to set the exit code. This handler runs after twistd has cleaned up.
        atexit.register(_exit_process, 1)
        reactor.callWhenRunning(reactor.stop)

    return fail


def _exit_process(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _stop_on_signals(reactor: Any) -> None:
    """Stop the reactor on SIGTERM, and on SIGHUP unless it is ignored, as with ``nohup``.

    With twistd's own handler, the exit status would be the signal instead of 0. The reactor installs its own handler
    when it starts. A signal that arrives then waits for ours.
    """
    ignores_hangup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    signals = {signal.SIGTERM} if ignores_hangup else {signal.SIGTERM, signal.SIGHUP}

    def stop(*_: object) -> None:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)  # it is stopping already
        reactor.callFromThread(reactor.stop)

    def install() -> None:
        for number in signals:
            signal.signal(number, stop)

    def install_again() -> None:
        install()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)

    install()
    reactor.addSystemEventTrigger("before", "startup", signal.pthread_sigmask, signal.SIG_BLOCK, signals)
    reactor.callWhenRunning(install_again)
