"""What is installed from a wheel works by itself, elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.client import App, batch
from tests.database import DatabaseServer
from tests.events import make_event
from tests.process import Twistd, environment, wait_for
from tests.test_lifecycle import post, ready

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(scratch: Path) -> Path:
    """The wheel, built from the files that are in the repository."""
    source, target = scratch / "source", scratch / "wheel"
    source.mkdir()
    files = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    for name in filter(None, files):
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
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


@pytest.mark.timeout(300)
def test_installed_elsewhere(wheel: Path, directory: Path, database_server: DatabaseServer) -> None:
    """In an empty virtual environment, ``twistd`` finds the plugin, migrates a database, and takes a batch."""
    home = directory / "venv"
    venv.create(home, with_pip=True)
    install = [str(home / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", str(wheel)]
    subprocess.run(install, check=True, cwd=directory, env={**environment(), "PYTHONNOUSERSITE": "1"})
    installed = subprocess.check_output([home / "bin" / "pip", "list"], text=True, cwd=directory)
    assert "pgserver" not in installed, "production installs stay small"
    with database_server.empty() as database:
        with Twistd(directory, {"TK__DATABASE__URL": database.dsn}, programs=home / "bin") as server:
            wait_for(lambda: ready(server.url))
            app = App().install(database)
            assert post(server.url, app, batch([make_event()])) == 200
            assert database.value("SELECT count(*) FROM events") == 1
            assert server.stop() == 0
        command = [str(home / "bin" / "tkserver"), "export", "--format", "parquet", "-o", "events"]
        settings = {**environment(), "TK__DATABASE__URL": database.dsn}
        done = subprocess.run(command, capture_output=True, text=True, cwd=directory, env=settings)
        assert (done.returncode, "pip install 'tkserver[parquet]'" in done.stderr) == (1, True), done.stderr
        assert not (directory / "events").exists()
        without = Twistd(directory, {"HOME": os.fspath(directory)}, programs=home / "bin").launch()
        assert without.wait() == 1
        assert "set TK__DATABASE__URL, or install the embedded one with pip install 'tkserver[embedded]'" in without.log
        assert "Traceback" not in without.log
