"""The files of ``deploy/``: what they say fits the server, and what can look them over does."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.env_example import FILE, example
from tests.deploy.proxy import replaced
from tests.support.documents import code_of, missing_in
from tests.support.source import ROOT
from tkserver.config import Settings, load, variables

DEPLOY = ROOT / "deploy"
DOCUMENTS = [ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md")]
OTHERS = {"TK__SERVER__", "TK__RATE_LIMIT__", "TK__INGEST__"}
"""Beginnings of names, which a text may use for all that begin so."""


def test_env_example() -> None:
    """It has all settings with their defaults."""
    assert FILE.read_text() == example(), "python -m tests.deploy.env_example writes it anew"


def test_env_example_is_valid(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything in it that has a value, the settings are the defaults."""
    lines = [re.sub(r"^#(TK__\w+=.)", r"\1", line) for line in example().splitlines()]
    assert any(line.startswith("TK__") for line in lines)
    (directory / ".env").write_text("\n".join(lines))
    monkeypatch.chdir(directory)
    assert load({}) == Settings()


@pytest.mark.parametrize("path", sorted({*DEPLOY.iterdir(), *DOCUMENTS}), ids=lambda path: path.name)
def test_settings_exist(path: Path) -> None:
    """Each setting that is named is one."""
    known = {name for name, _, _ in variables()} | OTHERS
    assert set(re.findall(r"\bTK__[A-Z_]+", path.read_text())) <= known


@pytest.mark.parametrize("path", [DEPLOY / "README.md", ROOT / "SECURITY.md"], ids=lambda path: path.name)
def test_documents(path: Path) -> None:
    """Commands and files that they name are there, and of the files of ``deploy/`` none is left out."""
    text = path.read_text()
    assert missing_in("\n".join(code_of(text))) == set()
    for target in re.findall(r"\]\(([^):]+)\)", text):
        assert (path.parent / target.partition("#")[0]).exists(), target
    if path.parent == DEPLOY:
        assert {file.name for file in DEPLOY.iterdir()} - {".env"} <= {path.name, *re.findall(r"[\w.-]+", text)}


def test_process_metrics() -> None:
    """The unit leaves /proc/stat to be read, without which prometheus_client has nothing to say of the process."""
    lines = (DEPLOY / "tkserver.service").read_text().splitlines()
    assert not [line for line in lines if line.startswith("ProcSubset=")]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
class TestUnits:
    """The units, as systemd sees them."""

    def test_verify(self, directory: Path) -> None:
        """They have no fault."""
        service = (DEPLOY / "tkserver.service").read_text()
        (directory / "tkserver.service").write_text(replaced(service, {"/opt/tkserver/bin/twistd": "/bin/true"}))
        shutil.copy(DEPLOY / "tkserver.socket", directory)
        units = sorted(directory.glob("tkserver.*"))
        done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
        assert (done.returncode, re.findall(r"^.*tkserver.*$", done.stderr, re.MULTILINE)) == (0, [])

    def test_security(self) -> None:
        """There is little that the service could do if it were taken over (1.5 of 10)."""
        command = ["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager"]
        done = subprocess.run([*command, DEPLOY / "tkserver.service"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
