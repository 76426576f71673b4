"""What the documents for operators say can be done, by doing it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.blocking_client import is_ready
from tests.support.command import PROGRAM, Command
from tests.support.database import Database
from tests.support.process import Twistd
from tests.support.process import environment as clean_environment
from tests.support.waiting import wait_for
from tkserver.cli.apps import apps
from tkserver.cli.main import main
from tkserver.cli.tokens import tokens

DOCS = Path(__file__).parents[2] / "docs"

COMMAND = re.compile(r"\btkserver ([a-z]+)(?: ([a-z-]+))?")
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", ["operating.md", "privacy.md"])
def test_blocks(name: str, directory: Path, database: Database) -> None:
    """Every block works, in the order of the document, for an installation that has just been started."""
    with Twistd(directory, {"TK__DATABASE__URL": database.dsn}) as server:
        wait_for(lambda: is_ready(server.url))
        command = Command.on(database, directory, TK__SERVER__PORT=str(server.port))
        if name != "operating.md":
            assert command("apps", "create", "my-cli").code == 0
        for language, block in BLOCK.findall((DOCS / name).read_text()):
            program = ["bash", "-euc", block] if language == "sh" else [sys.executable, "-c", block]
            done = subprocess.run(
                program, cwd=directory, env=environment(command, server), capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, f"{block}{done.stdout}{done.stderr}"
            if language == "python":
                assert "Result(accepted=10, rejected=0, duplicates=10" in done.stdout


@pytest.mark.parametrize("block", [block for _, block in BLOCK.findall((DOCS / "deployment.md").read_text())])
def test_deployment(block: str, directory: Path, database: Database) -> None:
    """Every block of that document works, on a port that is free here."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    block = re.sub(r"\b(8443|8080)\b", port, block)
    path = f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", f"trap 'kill $(jobs -p); wait' EXIT\n{block}"],
        cwd=directory,
        env={**clean_environment(), "TK__DATABASE__URL": database.dsn, "TK__ADMIN__PORT": "", "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert '"healthy"' in done.stdout or "curl" not in block, done.stdout + done.stderr


def environment(command: Command, server: Twistd) -> dict[str, str]:
    """Where ``tkserver`` is found, and the credentials that a program has."""
    credentials = command("tokens", "create", "my-cli", "--json")
    given = {key.upper(): value for key, value in credentials.json.items()} if credentials.code == 0 else {}
    path = f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}"
    return {**command.environment, **given, "PATH": path, "URL": server.url}


def test_commands_are_there() -> None:
    """Each command that a document names exists."""
    for document in (*DOCS.glob("*.md"), DOCS.parent / "README.md"):
        assert missing_in("\n".join(code_of(document.read_text()))) == set(), document.name


def missing_in(code: str) -> set[str]:
    """The commands in it that do not exist."""
    named = COMMAND.findall(code)
    groups = {"apps": apps.commands, "tokens": tokens.commands}
    missing = {name for name, _ in named if name not in main.commands}
    return missing | {sub for name, sub in named if sub not in groups.get(name, {sub: None})}


def code_of(text: str) -> list[str]:
    """What stands in back quotes, or in a block."""
    return [code for _, code in BLOCK.findall(text)] + re.findall(r"`(tkserver [^`]+)`", text)
