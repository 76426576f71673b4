"""What is in the wheel. That what is installed from it works elsewhere is shown in ``deploy/test_image.py``."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.source import ROOT, copy_tracked


@pytest.fixture(scope="module")
def wheel(scratch: Path) -> Path:
    """The wheel, built from the files that are in the repository."""
    source, target = copy_tracked(scratch / "source"), scratch / "wheel"
    build = [sys.executable, "-m", "build", "--outdir", str(target), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, cwd=scratch)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = target.glob("*.whl")
    return built


def test_contents(wheel: Path) -> None:
    """The wheel has the package, its plugin and its migrations, and nothing that it has no business with."""
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {name for name in names if ".dist-info/" not in name}
    tracked = subprocess.check_output(["git", "ls-files", "tkserver", "schema", "twisted"], cwd=ROOT, text=True).split()
    expected = {f"tkserver/{name}" if name.startswith("schema/") else name for name in tracked}
    assert package == expected
    assert {Path(name).name for name in names - package} >= {"LICENSE-MIT", "LICENSE-APACHE", "METADATA"}
