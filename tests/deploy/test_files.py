"""The files in ``deploy/`` agree with the server, and the programs that read them accept them."""

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
PREFIXES = {"TK__SERVER__", "TK__RATE_LIMIT__", "TK__INGEST__"}
"""Prefixes that a text can use for all settings of a group."""


def test_env_example_lists_all_settings() -> None:
    """``.env.example`` lists all settings with their defaults."""
    assert FILE.read_text() == example(), "update it with python -m tests.deploy.env_example"


def test_values_of_env_example_are_the_defaults(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If every value in ``.env.example`` is set, the settings equal the defaults."""
    lines = [re.sub(r"^#(TK__\w+=.)", r"\1", line) for line in example().splitlines()]
    assert any(line.startswith("TK__") for line in lines)
    (directory / ".env").write_text("\n".join(lines))
    monkeypatch.chdir(directory)
    assert load({}) == Settings()


@pytest.mark.parametrize("path", sorted({*DEPLOY.iterdir(), *DOCUMENTS}), ids=lambda path: path.name)
def test_settings_in_file_exist(path: Path) -> None:
    """Every setting that a file or document mentions exists."""
    known = {name for name, _, _ in variables()} | PREFIXES
    assert set(re.findall(r"\bTK__[A-Z_]+", path.read_text())) <= known


@pytest.mark.parametrize("path", [DEPLOY / "README.md", ROOT / "SECURITY.md"], ids=lambda path: path.name)
def test_commands_and_files_in_document_exist(path: Path) -> None:
    """Every command and file that a document mentions exists, and ``deploy/README.md`` mentions each file beside it."""
    text = path.read_text()
    assert missing_in("\n".join(code_of(text))) == set()
    for target in re.findall(r"\]\(([^):]+)\)", text):
        assert (path.parent / target.partition("#")[0]).exists(), target
    if path.parent == DEPLOY:
        assert {file.name for file in DEPLOY.iterdir()} - {".env"} <= {path.name, *re.findall(r"[\w.-]+", text)}


def test_unit_allows_process_metrics() -> None:
    """The unit does not hide /proc/stat, which prometheus_client needs for its process metrics."""
    lines = (DEPLOY / "tkserver.service").read_text().splitlines()
    assert not [line for line in lines if line.startswith("ProcSubset=")]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
class TestUnits:
    """The units of systemd."""

    def test_units_are_valid(self, directory: Path) -> None:
        """``systemd-analyze verify`` finds no error."""
        service = (DEPLOY / "tkserver.service").read_text()
        (directory / "tkserver.service").write_text(replaced(service, {"/opt/tkserver/bin/twistd": "/bin/true"}))
        shutil.copy(DEPLOY / "tkserver.socket", directory)
        units = sorted(directory.glob("tkserver.*"))
        done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
        assert (done.returncode, re.findall(r"^.*tkserver.*$", done.stderr, re.MULTILINE)) == (0, [])

    def test_exposure_level_is_low(self) -> None:
        """``systemd-analyze security`` reports an exposure level of at most 1.5 of 10."""
        command = ["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager"]
        done = subprocess.run([*command, DEPLOY / "tkserver.service"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
