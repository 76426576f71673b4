"""What the README says is so."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.blocking_client import is_ready
from tests.support.command import Command
from tests.support.process import Twistd, environment
from tests.support.waiting import wait_for
from tkserver.config import variables

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_first_event_is_the_script() -> None:
    """The example is the script that the server's log points at."""
    assert (ROOT / "tkserver/examples/first_event.sh").read_text() in blocks("sh")


def test_every_setting_is_listed() -> None:
    """The table has all settings, and no others."""
    listed = re.findall(r"^\| `(TK__\w+)` \|", README, re.MULTILINE)
    assert listed == [name for name, _, _ in variables()]


def test_links() -> None:
    """Files that it points at are there."""
    for target in re.findall(r"\]\(([^):]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.skipif(not shutil.which("psql"), reason="needs psql")
def test_pasted(directory: Path) -> None:
    """The example and the look at its row work when pasted."""
    data = directory / "data"
    example = (ROOT / "tkserver/examples/first_event.sh").read_text()
    (look,) = (block for block in blocks("sh") if block.startswith("psql"))
    with Twistd(directory, {"TK__DATABASE__DATA_DIR": str(data)}) as server:
        wait_for(lambda: is_ready(server.url))
        pasted = example.replace("http://127.0.0.1:3000", server.url)
        answer = subprocess.run(["bash"], input=pasted, capture_output=True, text=True, check=True).stdout
        assert json.loads(answer)["accepted"] == 1
        shown = subprocess.run(
            ["bash"], input=look.replace("<data>", str(data)), capture_output=True, text=True, env=environment()
        )
        assert "command_executed" in shown.stdout, shown.stderr
        command = next(
            line for block in blocks("sh") for line in block.splitlines() if line.startswith("tkserver apps create")
        )
        _, *arguments = shlex.split(command, comments=True)
        made = Command({"TK__DATABASE__DATA_DIR": str(data)}, directory)(*arguments, code=0)
        assert ".token(" in made.out
