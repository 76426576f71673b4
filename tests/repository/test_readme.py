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
from tests.support.documents import DOCUMENTS, blocks_of
from tests.support.process import Twistd, environment
from tests.support.source import ROOT, copy_tracked
from tests.support.waiting import wait_for
from tkserver.storage.embedded import demo

README = (ROOT / "README.md").read_text()

RUST = {
    "README.md": "0bde3df1b90dd5d689c5815e074d712de76bbf266134e043445f611a0e1b97c6",
    "docs/sdk.md": "8d882a4ee7fb3102b42f9ebc27f569ad2441268f9236a19515e94c63d3009792",
}
"""SHA-256 of the Rust examples.

They were built with telemetry-kit 0.3.0, and run with a server, without one, with responses of all kinds, and in a
directory that cannot be written. Do that again when you change them.
"""


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


@pytest.mark.parametrize("name", RUST)
def test_rust_example(name: str) -> None:
    """Each Rust example is the one that was built, with the credentials of the demo application."""
    ((_, example),) = blocks_of((ROOT / name).read_text(), "rust")
    assert hashlib.sha256(example.encode()).hexdigest() == RUST[name]
    for value in (demo.ORG_ID, demo.APP_ID, demo.TOKEN, demo.SECRET):
        assert f'"{value}"' in example


@pytest.mark.parametrize("name", RUST)
def test_rust_example_never_fails(name: str) -> None:
    """No error of the SDK ends a Rust example, and it waits for a limited time."""
    ((_, example),) = blocks_of((ROOT / name).read_text(), "rust")
    main = example.partition("async fn main()")[2].partition("\n}")[0]
    assert main.startswith(" {")  # it returns no error
    assert "?" not in main
    assert not re.search(r"unwrap|expect|panic", example)
    assert ".max_retries(0)" in example
    assert "tokio::time::timeout(" in example


def test_all_rust_examples_are_tested() -> None:
    """No other document has a Rust example."""
    assert {str(path.relative_to(ROOT)) for path in DOCUMENTS if blocks_of(path.read_text(), "rust")} == set(RUST)


@pytest.mark.timeout(300)
def test_new_user(directory: Path) -> None:
    """A new user can start the server from a fresh checkout, send the first event, export it, and run the example."""
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
    settings = {"TK__SERVER__PORT": "0", "TK__ADMIN__PORT": "none", "PATH": f"{PROGRAM.parent}:/usr/bin:/bin"}
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
