"""The wheel and the source distribution, and the server that is installed from the wheel."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import click
import pytest

from tests.support.blocking_client import get_json, is_ready
from tests.support.command import subcommands
from tests.support.process import Twistd, environment
from tests.support.pyproject import runtime_requirements
from tests.support.shared import built_once
from tests.support.source import ROOT, copy_tracked
from tests.support.waiting import wait_for
from tkserver.cli.main import main
from tkserver.storage.embedded import demo

pytestmark = pytest.mark.timeout(300)

COMMANDS = (
    "--version",
    "--help",
    "check",
    "migrate",
    "apps create my-cli --org acme --json",
    "apps rename my-cli my-tool",
    "apps set-slug my-tool tool",
    "orgs rename acme Acme",
    "orgs set-slug Acme acme",
    "orgs list",
    "tokens create my-tool --json",
    "tokens rotate my-tool --overlap 24h --json",
    f"tokens revoke {demo.TOKEN}",
    "tokens list my-tool",
    "apps set-quota my-tool 10000",
    "apps set-retention my-tool 90",
    "apps set-timezone my-tool UTC",
    "apps publish my-tool --slug my-page",
    "apps show my-tool",
    "apps unpublish my-tool",
    "send --app my-tool --events 2 --json",
    "export --app my-tool --format csv",
    "prune --dry-run",
    "erase --user client_demo",
    "export",
    "stats my-tool versions",
    "tail my-tool --no-follow --user client_nobody",
    "dashboard my-tool --share --no-browser",
    "dashboard --json",
    "dashboard sign-out",
    "shares create my-tool --name Friends --page versions --url https://stats.example.org",
    "shares list",
    "shares revoke 1",
    "serve --help",
    "psql -At -c SELECT/**/name/**/FROM/**/orgs",
    "apps create staged --staging --json",
    "apps promote staged --yes",
    "apps list --json",
    "quarantine list",
    "quarantine show my-tool",
    "quarantine replay",
    "quarantine delete my-tool",
    "demo --events 300 --users 50 --days 20",
    "apps delete sample-cli --yes",
)
"""Every operator command, in an order in which each succeeds."""


@dataclass(frozen=True)
class Distributions:
    wheel: Path
    sdist: Path


@pytest.fixture(scope="module")
def distributions() -> Distributions:
    """The source distribution, built from the tracked files, and the wheel, built from the source distribution."""
    target = built_once("distributions", build_distributions) / "dist"
    (wheel,), (sdist,) = target.glob("*.whl"), target.glob("*.tar.gz")
    return Distributions(wheel, sdist)


def build_distributions(directory: Path) -> None:
    source = copy_tracked(directory / "source")
    run(sys.executable, "-m", "build", "--outdir", directory / "dist", source)


@pytest.fixture(scope="module")
def programs(distributions: Distributions) -> Path:
    """The programs of an environment that contains only ``tkserver[embedded]``, installed from the wheel."""

    def install(target: Path) -> None:
        run(sys.executable, "-m", "venv", "--without-pip", target)
        requirement = f"tkserver[embedded] @ {distributions.wheel.as_uri()}"
        run(sys.executable, "-m", "pip", "--python", target / "bin/python", "install", requirement)

    return built_once("programs", install) / "bin"


def run(*command: str | Path, **settings: str) -> str:
    """Run a command that must succeed, with the server's settings and without the checkout in the module path.

    :return: its standard output.
    """
    clean = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env={**clean, **settings}, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked(*names: str) -> set[str]:
    """Return the tracked files, or those below these directories."""
    return set(subprocess.check_output(["git", "ls-files", *names], cwd=ROOT, text=True).split())


def test_wheel_contains_package_plugin_and_migrations(distributions: Distributions) -> None:
    """The wheel contains the package, the plug-in of twistd, the migrations and the licenses, and nothing else."""
    names = set(zipfile.ZipFile(distributions.wheel).namelist())
    package = {name for name in names if ".dist-info/" not in name}
    expected = {
        f"tkserver/{name}" if name.startswith("schema/") else name for name in tracked("tkserver", "schema", "twisted")
    }
    assert package == expected
    assert {Path(name).name for name in names - package} >= {"LICENSE-MIT", "LICENSE-APACHE", "METADATA"}


def test_sdist_contains_every_tracked_file(distributions: Distributions) -> None:
    """The source distribution contains the tracked files and its metadata, and nothing else."""
    with tarfile.open(distributions.sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    metadata = {name for name in names - tracked() if re.fullmatch(r"PKG-INFO|setup\.cfg|tkserver\.egg-info/.*", name)}
    assert names - metadata == tracked()


def test_twine_accepts_distributions(distributions: Distributions) -> None:
    """``twine check --strict`` finds no error in the metadata of either distribution."""
    run(sys.executable, "-m", "twine", "check", "--strict", distributions.wheel, distributions.sdist)


def load_setup() -> ModuleType:
    """Import ``setup.py``, which does nothing then."""
    spec = spec_from_file_location("tkserver_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_on_a_package_index_are_absolute() -> None:
    """On a package index, relative links lead to the repository if its URL is known; otherwise nothing changes."""
    text = (
        "[a](docs/a.md), [b](docs/b.md#c) ([d](LICENSE)) ![e](e.png)\n"
        "[f](https://example.org/f) [g](#g) [h](mailto:h@i)\n"
        "```sh\n[a](docs/a.md)\n```\n[j](docs/j.md)\n"
    )
    absolute_links = load_setup().absolute_links
    assert absolute_links(text, None) == text
    assert absolute_links(text, "https://example.org/r") == (
        "[a](https://example.org/r/blob/HEAD/docs/a.md), [b](https://example.org/r/blob/HEAD/docs/b.md#c)"
        " ([d](https://example.org/r/blob/HEAD/LICENSE)) ![e](https://example.org/r/blob/HEAD/e.png)\n"
        "[f](https://example.org/f) [g](#g) [h](mailto:h@i)\n```sh\n[a](docs/a.md)\n```\n"
        "[j](https://example.org/r/blob/HEAD/docs/j.md)\n"
    )


def test_readme_links_on_a_package_index() -> None:
    """With the URL of a repository, no link of the README is relative, and nothing else changes."""
    readme = (ROOT / "README.md").read_text()
    absolute = load_setup().absolute_links(readme, "https://example.org/r")
    assert absolute.replace("https://example.org/r/blob/HEAD/", "") == readme
    relative = re.findall(r"\]\((?!https?:|#)[^)]+\)", absolute)
    assert relative == []
    assert absolute.count("https://example.org/r/blob/HEAD/") > 10


def test_url_of_the_repository() -> None:
    """The URL of the repository is that in ``pyproject.toml``, if there is one."""
    repository_url = load_setup().repository_url
    assert repository_url('[project.urls]\nRepository = "https://example.org/r/"\n') == "https://example.org/r"
    assert repository_url('[project.urls]\nHomepage = "https://example.org"\n') is None


def test_metadata_contains_the_readme(distributions: Distributions) -> None:
    """The description of the package is the README with absolute links."""
    setup = load_setup()
    archive = zipfile.ZipFile(distributions.wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    headers, _, description = archive.read(name).decode().partition("\n\n")
    url = setup.repository_url((ROOT / "pyproject.toml").read_text())
    assert description.strip() == setup.absolute_links((ROOT / "README.md").read_text(), url).strip()
    assert "Description-Content-Type: text/markdown" in headers


def test_twisted_has_an_upper_bound() -> None:
    """The requirement excludes the next major version of Twisted, and the installed version satisfies it."""
    (twisted,) = (requirement for requirement in runtime_requirements() if requirement.name == "Twisted")
    major = int(version("Twisted").partition(".")[0])
    assert version("Twisted") in twisted.specifier
    assert f"{major + 1}.0" not in twisted.specifier


def test_installed_server_is_independent_of_the_checkout(programs: Path) -> None:
    """The environment is complete without test dependencies, and its modules do not come from the checkout."""
    run(sys.executable, "-m", "pip", "--python", programs / "python", "check")
    listed = json.loads(run(sys.executable, "-m", "pip", "--python", programs / "python", "list", "--format=json"))
    names = {package["name"].lower() for package in listed}
    required = {requirement.name.lower() for requirement in runtime_requirements("embedded")}
    assert {"tkserver", *required} <= names
    assert not {"pytest", "pyarrow", "txredisapi"} & names
    where = run(programs / "python", "-c", "import tkserver; print(tkserver.__file__)").strip()
    assert Path(where).is_relative_to(programs.parent)


def test_every_command_is_in_the_session() -> None:
    """The session below uses each operator command."""
    words = [command.split() for command in COMMANDS]
    for name, command in subcommands(main).items():
        if isinstance(command, click.Group):
            assert set(command.commands) <= {rest[0] for group, *rest in words if group == name}
        else:
            assert name in {first for first, *_ in words}


def test_installed_server_behaves_as_from_a_checkout(programs: Path, directory: Path) -> None:
    """The installed server and the one of the checkout write the same log, responses and command output.

    Each starts on its embedded database, receives the example of the README, and is used with every command.
    """
    sessions = [
        Session(programs, directory / "installed", {"PYTHONPATH": ""}),
        Session(Path(sys.executable).parent, directory / "checkout", {}),
    ]
    with ThreadPoolExecutor() as pool:
        installed, checkout = pool.map(Session.transcript, sessions)
    assert installed == checkout
    assert '{"status":"success","accepted":#,' in installed["first event"]


class Session:
    """The use of a server, from its first start to its end.

    :param programs: the directory of ``twistd`` and ``tkserver``.
    :param directory: a new directory for the data and the log.
    """

    def __init__(self, programs: Path, directory: Path, settings: Mapping[str, str]) -> None:
        directory.mkdir()
        self._programs = programs
        self._directory = directory
        own = {"TK__DATABASE__DATA_DIR": str(directory / "data"), "TK__INSIGHT__ENABLED": "false"}
        self._settings = {**settings, **own}  # commands aggregate, so that their output is always the same

    def transcript(self) -> dict[str, str]:
        """Return everything that the server and the commands write, without what differs between two sessions."""
        package = self._run("python", "-c", "import tkserver; print(tkserver.__path__[0])").strip()
        places = {package: "<package>", str(self._programs): "<programs>", str(self._directory): "<directory>"}
        return {name: normalized(text, places) for name, text in self._outputs()}

    def _outputs(self) -> Iterator[tuple[str, str]]:
        yield "twistd tkserver --help", self._run("twistd", "tkserver", "--help")
        with Twistd(self._directory, self._settings, programs=self._programs) as server:
            wait_for(lambda: is_ready(server.url))
            script = Path(server.wait_for_line(r"\S+/first_event\.sh"))
            assert script.read_text() in (ROOT / "README.md").read_text()
            yield "first event", subprocess.check_output(["sh", script, server.url], text=True)
            for path in ("/health", "/health/ready", "/unknown"):
                yield path, json.dumps(get_json(server.url + path))
            self._settings["TK__SERVER__PORT"] = str(server.port)
            for command in COMMANDS:
                yield command, self._run("tkserver", *command.split())
            assert server.stop() == 0
            yield "log", "\n".join(line for line in self._log().splitlines() if "/health" not in line)

    def _log(self) -> str:
        return "".join(path.read_text() for path in self._directory.glob("*.log"))

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [self._programs / program, *arguments],
            cwd=self._directory,
            env={**environment(), **self._settings},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (
            done.stdout + done.stderr + "".join(f.read_text() for f in self._directory.glob("*.log"))
        )
        return done.stdout + done.stderr


def normalized(text: str, places: Mapping[str, str]) -> str:
    """Return the text with names for these paths, ``#`` for numbers and random ids, and its lines sorted."""
    for path, name in places.items():
        text = text.replace(path, name)
    uuid = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    text = re.sub(r"/python[\d.]+", "/python", text)
    text = re.sub(r'"last_used_at": (null|"[^"]+")', '"last_used_at": #', text)  # written every 30 seconds
    text = re.sub(r"/shared/[\w-]{22}", "/shared/#", text)
    text = re.sub(rf"{uuid}|anon_[0-9a-f]+|[0-9a-f]{{16,}}|\b[0-9a-f]{{8}}\b|[-+]?\d+(?:\.\d+)?", "#", text)
    return "\n".join(sorted(re.sub(r"[ ─━]+", " ", line) for line in text.splitlines()))
