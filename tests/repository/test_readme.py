"""The README: it is short, and a new user can follow it."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.support.command import PROGRAM
from tests.support.database import Database
from tests.support.documents import blocks_of
from tests.support.process import Twistd, environment
from tests.support.source import ROOT, copy_tracked
from tests.support.waiting import wait_for
from tkserver.storage.embedded import demo

README = (ROOT / "README.md").read_text()

RUST = "cf5bb98d21f5d1219b6beed8fa062e23da80e11d44d986e1b338bab9e40d70c6"
"""SHA-256 of the Rust example, which was built with telemetry-kit 0.3.0. Build it again when you change it."""


def blocks(language: str) -> list[str]:
    """Return the contents of all blocks in a language."""
    return [block for _, block in blocks_of(README, language)]


def block_with(language: str, text: str) -> str:
    """Return the only block in a language that contains a text."""
    (block,) = (block for block in blocks(language) if text in block)
    return block


def test_length() -> None:
    """The README has at most 150 lines."""
    assert len(README.splitlines()) <= 150


def test_first_event_is_the_script() -> None:
    """The README shows the script that the log of the server names."""
    assert (ROOT / "tkserver/examples/first_event.sh").read_text() in blocks("sh")


def test_rust_example() -> None:
    """The Rust example is the one that was built, with the credentials of the demo application."""
    (example,) = blocks("rust")
    assert hashlib.sha256(example.encode()).hexdigest() == RUST
    for value in (demo.ORG_ID, demo.APP_ID, demo.TOKEN, demo.SECRET):
        assert f'"{value}"' in example


@pytest.mark.timeout(300)
def test_new_user(directory: Path) -> None:
    """In a fresh checkout, the start command, the first event, its export and the Python example work."""
    checkout = copy_tracked(directory / "checkout")
    start = block_with("sh", "twistd -n tkserver").strip()
    install, _, command = start.rpartition(" && ")
    installed = subprocess.run(
        ["bash", "-euc", install], cwd=checkout, env=environment(), capture_output=True, text=True
    )
    assert installed.returncode == 0, installed.stdout + installed.stderr
    program, *arguments = shlex.split(command)
    settings = {"TK__DATABASE__DATA_DIR": str(directory / "data")}
    with Twistd(checkout, settings, tuple(arguments), (checkout / program).parent) as server:
        server.wait_until_ready()

        def paste(program: list[str], text: str) -> str:
            pasted = text.replace("http://127.0.0.1:3000", server.url)
            done = subprocess.run(
                program, input=pasted, cwd=checkout, env={**environment(), **settings}, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        response = json.loads(paste(["bash", "-eu"], block_with("sh", "curl")))
        assert (response["status"], response["accepted"]) == ("success", 1)
        (export,) = re.findall(r"`(\S+/tkserver export)`", README)
        exported = json.loads(paste(["bash", "-eu"], export))
        assert exported["event"] == {"type": "command_executed", "data": {"ok": True, "command": "build"}}
        printed = paste([str(checkout / ".venv/bin/python"), "-"], block_with("python", "Client"))
        assert "Result(accepted=1, rejected=0, duplicates=0" in printed


def test_production(directory: Path, database: Database) -> None:
    """With your own database, the commands start a daemon and print credentials."""
    script = block_with("sh", "export TK__DATABASE__URL")
    script, replaced = re.subn(r"(?m)^export .*$", f"export TK__DATABASE__URL='{database.dsn}'", script)
    assert replaced == 1
    settings = {"TK__SERVER__PORT": "0", "TK__ADMIN__PORT": "", "PATH": f"{PROGRAM.parent}:/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "-euc", f"{script}\nkill $(cat twistd.pid)"],
        cwd=directory,
        env={**environment(), **settings},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert ".token(" in done.stdout
    wait_for(lambda: not (directory / "twistd.pid").exists())
    assert "listens on" in (directory / "twistd.log").read_text()
