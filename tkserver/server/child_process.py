"""Child processes that run Python code of this package."""

from __future__ import annotations

import os
import sys
from typing import Any

import msgspec
from twisted.internet.interfaces import IProcessProtocol

_SCRIPT = "import json, sys; sys.path[:] = json.loads(sys.stdin.buffer.readline()); from {module} import main; main()"


def start_python(reactor: Any, protocol: IProcessProtocol, module: str) -> None:
    """Call ``main`` of a module in a new process.

    The process imports modules from where this one does, and never from the working directory. It does not get the
    settings, which contain the password of the database.

    :param protocol: its first output must be :func:`import_path`.
    :raise OSError: if the process cannot be started.
    """
    # -I: neither the working directory nor variables such as PYTHONPATH determine what is imported.
    command = [sys.executable, "-I", "-c", _SCRIPT.format(module=module)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TK__")}
    reactor.spawnProcess(protocol, command[0], command, environment)


def import_path() -> bytes:
    """Return the line that tells a process where to import modules from."""
    path = [os.path.abspath(entry) for entry in sys.path]  # noqa: PTH100 -- zip files are entries, too
    return msgspec.json.encode(path) + b"\n"
