"""Commands that run on a terminal."""

from __future__ import annotations

import os
import pty
import subprocess

from tests.support.command import PROGRAM, Command


def run_on_terminal(command: Command, *arguments: str, typed: str = "") -> tuple[int, str, str]:
    """Run ``tkserver`` with a terminal as standard input and standard error.

    :param typed: a line that is typed.
    :return: the exit code, the text on standard output, and what the terminal shows.
    """
    terminal, command_side = pty.openpty()
    process = subprocess.Popen(
        [PROGRAM, *arguments],
        cwd=command.directory,
        env={**command.environment, "TERM": "xterm"},
        stdin=command_side,
        stdout=subprocess.PIPE,
        stderr=command_side,
        text=True,
    )
    os.close(command_side)
    os.write(terminal, f"{typed}\n".encode())
    shown = _read_until_closed(terminal)
    os.close(terminal)
    printed, _ = process.communicate()
    return process.returncode, printed, shown


def _read_until_closed(terminal: int) -> str:
    """Return what is shown until the last process closes the terminal. It must be read, or the process would wait."""
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 1 << 16)
        except OSError:  # on Linux, this is the end
            return shown.decode()
