"""``tkserver serve``, and completion for shells."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import PROGRAM, Command, subcommands
from tests.support.database import Database
from tests.support.process import Twistd, environment
from tkserver.cli.main import main


@pytest.mark.processes
def test_serve(database: Database, directory: Path) -> None:
    """The command is the server in the foreground, takes its options, and ends with 0 on SIGTERM."""
    server = Twistd(directory, {"TK__DATABASE__URL": database.dsn})
    server._command = [str(PROGRAM), "serve", "--host", "127.0.0.2"]
    with server:
        assert "listens on http://127.0.0.2:" in server.log
        assert server.stop() == 0
    assert "stopped" in server.log


def test_wrong_option(database: Database, directory: Path) -> None:
    """An option that twistd does not know is an error, which names it."""
    done = Command.on(database, directory)("serve", "--colour")
    assert done.code == 1
    assert "colour" in done.out + done.errors


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str) -> None:
    """The documented line prints a script for each shell."""
    if shell == "bash" and sys.platform == "darwin":
        pytest.skip("needs Bash 4.4")
    done = subprocess.run(
        [PROGRAM], env={**environment(), "_TKSERVER_COMPLETE": f"{shell}_source"}, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "_tkserver_completion" in done.stdout


def test_completion() -> None:
    """Commands, subcommands and options are completed, in Bash with the script that it gets."""
    assert complete("tkserver ") >= set(subcommands(main))
    assert complete("tkserver ap") == {"apps"}
    assert {"create", "publish"} <= complete("tkserver apps ")
    assert "--retention" not in complete("tkserver apps create --")
    assert "--slug" in complete("tkserver apps create --s")


def complete(line: str) -> set[str]:
    """Return what the Tab key offers at the end of a line."""
    words = line.split(" ")
    variables = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_TKSERVER_COMPLETE": "bash_complete"}
    done = subprocess.run([PROGRAM], env={**environment(), **variables}, capture_output=True, text=True, check=True)
    return {option.partition(",")[2] for option in done.stdout.splitlines()}


def test_first_steps() -> None:
    """Without arguments, the command shows what to do first."""
    done = subprocess.run([PROGRAM], env=environment(), capture_output=True, text=True)
    assert done.returncode == 2
    assert "First steps:\n    tkserver serve" in done.stdout + done.stderr
