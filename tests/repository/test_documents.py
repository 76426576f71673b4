"""The documents: links resolve, blocks run, and reference pages list everything that they describe."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

from tests.support.blocking_client import post_batch
from tests.support.client import App, batch
from tests.support.cluster import installations
from tests.support.command import PROGRAM, Command, subcommands
from tests.support.database import Database, DatabaseServer
from tests.support.documents import DOCS, DOCUMENTS, anchors_of, blocks_of, code_of, links_of, missing_in, text_of
from tests.support.events import make_event
from tests.support.ports import reserved_port
from tests.support.process import Twistd
from tests.support.process import environment as clean_environment
from tests.support.quarantined import put
from tests.support.source import ROOT
from tkserver.cli.main import main
from tkserver.config import variables
from tkserver.ingest.ledger import ENTRIES

pytestmark = pytest.mark.timeout(300)  # a document starts several servers, one after the other

ON_AN_INSTALLATION = ["api.md", "monitoring.md", "operating.md", "privacy.md"]
"""Documents in ``docs/`` whose blocks run on a server with its own database."""

ON_THEIR_OWN = ["commands.md", "deployment.md", "migrating.md", "settings.md"]
RUN = {"README.md", *(f"docs/{name}" for name in ON_AN_INSTALLATION + ON_THEIR_OWN)}
NOT_RUN = {"deploy/README.md"}
"""It needs Docker or root. The tests in ``tests/deploy`` run the same steps without them."""

each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


# --- links


@each_document
def test_links_resolve(path: Path) -> None:
    """Each link to a file, or to a heading in one, has a target."""
    for link in links_of(path):
        name, _, anchor = link.partition("#")
        if ":" not in name:
            target = path.parent / name if name else path
            assert target.exists(), link
            assert not anchor or anchor in anchors_of(target), link


def test_index_lists_every_document() -> None:
    """The README links to every other document."""
    listed = {(ROOT / link).resolve() for link in links_of(ROOT / "README.md") if ":" not in link}
    assert {*DOCUMENTS, DOCS / "openapi.yaml"} - {ROOT / "README.md"} <= listed


@each_document
def test_named_files_exist(path: Path) -> None:
    """Each file of the repository that a document names exists. Another test checks ``architecture.md``."""
    named = set(re.findall(r"`((?:bench|deploy|docs|schema|tests|tkserver)/[\w./-]+)`", path.read_text()))
    created_by_users = {"deploy/.env"}
    missing = [name for name in named - created_by_users if not (ROOT / name).exists()]
    assert not missing or path.name == "architecture.md"


# --- blocks


@each_document
def test_every_block_has_a_language(path: Path) -> None:
    """Each block names its language, so that a reader and the tests know which blocks are commands."""
    assert "" not in [language for language, _ in blocks_of(path.read_text())]


def test_every_document_with_commands_is_run() -> None:
    """Each document that has shell or Python blocks is run by a test, or listed as one that cannot run."""
    with_commands = [path for path in DOCUMENTS if blocks_of(path.read_text(), "sh", "python")]
    assert {str(path.relative_to(ROOT)) for path in with_commands} == RUN | NOT_RUN


@each_document
def test_settings_exist(path: Path) -> None:
    """Each setting that a document names exists."""
    known = [name for name, _, _ in variables()]
    for named in re.findall(r"\bTK__[A-Z_]*", path.read_text()):
        assert named in known or (named.endswith("_") and any(name.startswith(named) for name in known)), named


@each_document
def test_commands_exist(path: Path) -> None:
    """Each command that a document names exists."""
    assert missing_in("\n".join(code_of(path.read_text()))) == set()


@each_document
def test_extras_exist(path: Path) -> None:
    """Each extra that a document installs exists."""
    named = re.findall(r"'(?:tkserver|\.)\[(\w+)\]'", path.read_text())
    assert set(named) <= set(metadata("tkserver").get_all("Provides-Extra") or [])


def run(language: str, block: str, directory: Path, settings: Mapping[str, str]) -> str:
    """Run a block, which must succeed, and return its output."""
    program = ["bash", "-euc", block] if language == "sh" else [sys.executable, "-c", block]
    done = subprocess.run(program, cwd=directory, env=environment(settings), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{block}{done.stdout}{done.stderr}"
    return done.stdout


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which ``tkserver`` and the programs of PostgreSQL are found."""
    programs = (PROGRAM.parent, next(installations()), os.environ["PATH"])
    return {**clean_environment(), "PATH": os.pathsep.join(map(str, programs)), **settings}


@dataclass(frozen=True)
class Installation:
    """A server with its own database, and the ``tkserver`` command with the same settings."""

    server: Twistd
    command: Command
    admin_port: int

    def run(self, language: str, block: str) -> str:
        """Run a block, which must succeed, and return its output."""
        credentials = self._credentials() if re.search(r"\$TOKEN|environ", block) else {}
        block = block.replace(":3001/", f":{self.admin_port}/")
        return run(language, block, self.command.directory, {**self.command.settings, **credentials})

    def _credentials(self) -> dict[str, str]:
        """Return the variables for a program that sends events of the first application."""
        app, *_ = self.command("apps", "list", "--json", code=0).json
        created = self.command("tokens", "create", app["app_id"], "--json", code=0).json
        return {"URL": self.server.url, **{key.upper(): value for key, value in created.items()}}


@pytest.fixture
def installation(directory: Path, database: Database) -> Iterator[Installation]:
    with reserved_port() as admin_port:
        settings = {"TK__DATABASE__URL": database.dsn, "TK__ADMIN__PORT": str(admin_port)}
        with Twistd(directory, settings) as server:
            server.wait_until_ready()
            command = Command.on(database, directory, TK__SERVER__PORT=str(server.port))
            yield Installation(server, command, admin_port)


OUTPUTS = {
    "api.md": '200 {"status":"success","accepted":1,',
    "monitoring.md": "tkserver_events_received_total 0.0",
    "operating.md": "Result(accepted=10, rejected=0, duplicates=10",
}
"""Texts that the blocks of these documents print."""


@pytest.mark.parametrize("name", ON_AN_INSTALLATION)
def test_blocks_run(name: str, installation: Installation) -> None:
    """Each block of these documents runs, in the order of the document, on a new installation."""
    if name != "operating.md":
        installation.command("apps", "create", "my-cli", code=0)
    printed = [installation.run(*block) for block in blocks_of(text_of(name), "sh", "python")]
    assert OUTPUTS.get(name, "") in "".join(printed)


@pytest.mark.parametrize("block", [block for _, block in blocks_of(text_of("deployment.md"), "sh")])
def test_deployment_blocks_run(block: str, directory: Path, database: Database) -> None:
    """Each block of the deployment guide works, on a free port."""
    settings = {"TK__DATABASE__URL": database.dsn, "TK__ADMIN__PORT": "none"}
    with reserved_port() as port:
        block = re.sub(r"\b(8443|8080)\b", str(port), block)
        output = run("sh", f"trap 'kill $(jobs -p) 2> /dev/null || true; wait' EXIT\n{block}", directory, settings)
    assert '"healthy"' in output or "curl" not in block


def test_settings_blocks_run(directory: Path) -> None:
    """Each block of the settings page works with an embedded database."""
    settings = {"TK__DATABASE__DATA_DIR": str(directory / "data")}
    with Twistd(directory, settings) as server:
        server.wait_until_ready()
        settings |= {"TK__SERVER__PORT": str(server.port)}
        Command(settings, directory)("send", code=0)
        document = text_of("settings.md").replace("<data>", str(directory / "data"))
        check, query = [run("sh", block, directory, settings) for _, block in blocks_of(document, "sh")]
    assert "settings" in check
    assert "sample" in query


# --- migrating.md

REFERENCE_SCHEMA = """
CREATE TYPE token_tier AS ENUM ('free', 'pro', 'business', 'enterprise');
CREATE TABLE api_tokens (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(), org_id UUID NOT NULL, app_id UUID NOT NULL,
    token VARCHAR(255) UNIQUE NOT NULL, secret VARCHAR(255) NOT NULL, tier token_tier NOT NULL DEFAULT 'free',
    is_active BOOLEAN NOT NULL DEFAULT true, created_at TIMESTAMPTZ NOT NULL DEFAULT now(), last_used_at TIMESTAMPTZ,
    UNIQUE (org_id, app_id)
);
CREATE TABLE events (
    id BIGSERIAL PRIMARY KEY, event_id UUID UNIQUE NOT NULL, org_id UUID NOT NULL, app_id UUID NOT NULL,
    schema_version VARCHAR(20) NOT NULL, timestamp TIMESTAMPTZ NOT NULL, service_name VARCHAR(255) NOT NULL,
    service_version VARCHAR(100) NOT NULL, service_language VARCHAR(50) NOT NULL, service_language_version VARCHAR(50),
    user_id VARCHAR(255) NOT NULL, session_id VARCHAR(255), os VARCHAR(50), os_version VARCHAR(100), arch VARCHAR(50),
    ci BOOLEAN, shell VARCHAR(50), event_type VARCHAR(100) NOT NULL, event_category VARCHAR(50),
    event_data JSONB NOT NULL, sdk_version VARCHAR(50) NOT NULL, transmission_timestamp TIMESTAMPTZ NOT NULL,
    batch_size INTEGER NOT NULL, retry_count INTEGER NOT NULL DEFAULT 0, received_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
INSERT INTO api_tokens (org_id, app_id, token, secret) VALUES (
    '550e8400-e29b-41d4-a716-446655440000', '7c9e6679-7425-40de-944b-e07fc1f90ae7',
    'tk_550e8400e29b41d4a716446655440000_a1b2c3d4e5f6g7h8i9j0k1l2m3n4o5p6',
    '9f4b3c2a1e8d7f6a5b4c3d2e1f0a9b8c7d6e5f4a3b2c1d0e9f8a7b6c5d4e3f2a1b0'
)
"""
"""The tables of the reference server, without the indexes that only make queries faster."""

INSERT_EVENT = """
INSERT INTO events (event_id, org_id, app_id, schema_version, timestamp, service_name, service_version,
    service_language, user_id, os, event_type, event_data, sdk_version, transmission_timestamp, batch_size, received_at)
VALUES (%s, %s, %s, '1.0.0', '2025-01-01T12:00:00Z', 'my-cli', '1.0.0', 'rust', 'client_1', 'linux', 'command',
    '{"a": "b\\\\u00e4\\n"}', '0.3.0', '2025-01-01T12:00:01Z', 1, '2025-01-01T12:00:02Z')
"""

ROWS = "SELECT to_jsonb(t) - 'expires_at' FROM {} AS t ORDER BY t.id"


def test_migration_blocks_run(directory: Path, database_server: DatabaseServer) -> None:
    """The migration copies all rows; credentials work, known events are duplicates, and new events are stored."""
    app, events = App(), [make_event() for _ in range(3)]
    with database_server.empty() as old, database_server.empty() as new:
        old.query(REFERENCE_SCHEMA)
        app.install(old)
        for event in events:
            old.query(INSERT_EVENT, event["event_id"], app.org_id, app.app_id)
        copied = {table: old.query(ROWS.format(table)) for table in ("api_tokens", "events")}
        script = "\n".join(block for _, block in blocks_of(text_of("migrating.md"), "sh"))
        for name, database in (("OLD_DATABASE_URL", old), ("TK__DATABASE__URL", new)):
            script, replaced = re.subn(rf"(?m)^export {name}=.*$", f"export {name}='{database.dsn}'", script)
            assert replaced == 1
        before_revocation, revocation = script.split("tkserver tokens revoke")
        run("sh", before_revocation, directory, {"APP_ID": app.app_id})
        assert {table: new.query(ROWS.format(table)) for table in copied} == copied
        run("sh", f"tkserver tokens revoke{revocation}", directory, {"TK__DATABASE__URL": new.dsn})
        assert new.query("SELECT token FROM api_tokens WHERE is_active") == [(app.token,)]
        assert new.query("SELECT name, app_id::text FROM apps") == [("my-cli", app.app_id)]
        with Twistd(directory, {"TK__DATABASE__URL": new.dsn}) as server:
            server.wait_until_ready()
            assert post_batch(server.url, app, batch([*events, make_event()])) == 200
        assert new.value("SELECT count(*) FROM events") == 4


# --- settings.md


def test_every_setting_is_listed() -> None:
    """The settings page lists all settings, in their order, with their defaults."""
    rows = re.findall(r"^\| `(TK__\w+)` \| ([^|]+) \|", text_of("settings.md"), re.MULTILINE)
    assert [name for name, _ in rows] == [name for name, _, _ in variables()]
    for (name, shown), (_, default, _) in zip(rows, variables(), strict=True):
        written = ",".join(default) if isinstance(default, tuple) else str(default)
        assert shown == f"`{written}`" or not default, name


# --- commands.md


def commands(group: click.Group = main, name: str = "tkserver") -> Iterator[tuple[str, click.Command]]:
    """Yield all commands that are not groups, with their full names."""
    for command_name, command in subcommands(group).items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} {command_name}")
        else:
            yield f"{name} {command_name}", command


def sections() -> dict[str, str]:
    """Return the sections of ``commands.md`` by the command that they describe."""
    _, *parts = re.split(r"^### `(tkserver [a-z -]+)`$", text_of("commands.md"), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def shown_default(parameter: click.Parameter) -> str | None:
    """Return the default of a parameter as the table shows it; ``None`` if the table describes it in words."""
    if parameter.required:
        return "required"
    is_flag = isinstance(parameter, click.Option) and parameter.is_flag
    return f"`{parameter.default}`" if isinstance(parameter.default, str | int) and not is_flag else None


def test_every_command_is_listed() -> None:
    """The page has a section for each command, and no others."""
    assert sections().keys() == dict(commands()).keys()


@pytest.mark.parametrize(("name", "command"), [pytest.param(*item, id=item[0]) for item in commands()])
def test_every_option_is_listed(name: str, command: click.Command) -> None:
    """The section of a command lists all its arguments and options, with their defaults, and no others."""
    rows = re.findall(r"^\| (`.+?`) \| (.*?) \|", sections()[name], re.MULTILINE)
    listed = {tuple(re.findall(r"`([^`]+)`", names)): default for names, default in rows}
    expected = {
        tuple(sorted(parameter.opts, key=len))
        if isinstance(parameter, click.Option)
        else (parameter.human_readable_name.upper(),): shown_default(parameter)
        for parameter in command.params
    }
    assert listed.keys() == expected.keys()
    for names, default in expected.items():
        assert default in (None, listed[names]), names
    assert ("JSON keys: " in sections()[name]) == (("--json",) in expected)


VARIANTS = {
    "tkserver tokens create": ("--read", {"secret"}, {"id"}),
    "tkserver tokens list": ("--show-secret", set[str](), {"secret"}),
    "tkserver prune": ("--dry-run", {"deleted"}, {"to_delete"}),
    "tkserver erase": ("--undo", {"deleted_from_events", "deleted_from_quarantine"}, {"deleted_from_erasures"}),
}
"""Options that change the JSON keys of a command, the keys that they remove, and the keys that they add."""


def test_examples_print_the_documented_json_keys(installation: Installation, database: Database) -> None:
    """Each example runs, in the order of the page, and prints the documented keys with ``--json``."""
    installation.command("apps", "create", "old-cli", code=0)
    for name in ("trial", "another-trial"):
        installation.command("apps", "create", name, "--staging", code=0)
    for name, section in sections().items():
        if name == "tkserver quarantine list":
            record = installation.command("apps", "show", "my-tool", "--json", code=0).json
            put(database, App(org_id=record["org_id"], app_id=record["app_id"]), "{}")
        ((_, example),) = blocks_of(section, "sh")
        example = example.strip()
        installation.run("sh", example)
        if "JSON keys: " in section:
            keys = set(re.findall(r"`(\w+)`", section.split("JSON keys: ")[1].split(".\n")[0]))
            example = example.replace("apps create my-cli", "apps create another")
            example = example.replace("apps delete old-cli", "apps delete another")
            example = example.replace("apps promote trial", "apps promote another-trial")
            assert printed_keys(installation, example) == keys, name
            if name in VARIANTS:
                option, removed, added = VARIANTS[name]
                assert f"`{option}`" in section
                assert {f"`{key}`" for key in added} <= set(re.findall(r"`\w+`", section)), name
                assert printed_keys(installation, f"{example} {option}") == keys - removed | added, name


def printed_keys(installation: Installation, command: str) -> set[str]:
    """Return the keys that a command prints with ``--json``. It runs in this process, unless it needs a reactor."""
    _, *arguments = shlex.split(command)
    if arguments[0] in ("send", "demo"):
        output = installation.command(*arguments, "--json", code=0).out
    else:
        output = (
            CliRunner()
            .invoke(main, [*arguments, "--json"], env=dict(installation.command.settings), catch_exceptions=False)
            .output
        )
    printed = json.loads(output)
    return set(printed[0] if isinstance(printed, list) else printed)


# --- api.md

OPENAPI: dict[str, Any] = yaml.safe_load(text_of("openapi.yaml"))
SCHEMAS: dict[str, Any] = OPENAPI["components"]["schemas"]


def resolved(value: Any) -> Any:
    """Return the part of the OpenAPI document that a reference points to; other values are returned as they are."""
    while isinstance(value, dict) and "$ref" in value:
        _, _, kind, name = value["$ref"].split("/")
        value = OPENAPI["components"][kind][name]
    return value


def error_codes(schema: Any) -> Iterator[str]:
    """Yield the values of ``error.code`` that a schema allows."""
    schema = resolved(schema)
    if isinstance(schema, dict):
        yield from schema.get("properties", {}).get("code", {}).get("enum", ())
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from error_codes(inner)


def test_every_error_code_is_listed() -> None:
    """The API page lists the same error codes as the OpenAPI document, with the same statuses."""
    listed = re.findall(r"^\| (\d{3}) \| `(\w+)` \|", text_of("api.md"), re.MULTILINE)
    responses = [operation["responses"] for path in OPENAPI["paths"].values() for operation in path.values()]
    documented = {
        (status, code)
        for by_status in responses
        for status, response in by_status.items()
        for code in error_codes(resolved(response).get("content"))
    }
    assert len(listed) == len(set(listed))
    assert set(listed) == documented
    of_events = SCHEMAS["EventErrors"]["items"]["properties"]["error"]["enum"]
    section = text_of("api.md").split("\n### 207")[1].split("\n### ")[0]
    assert re.findall(r"^\| `(\w+)` \| .*\. \|$", section, re.MULTILINE) == of_events


def fields(schema: Any, prefix: str = "") -> Iterator[tuple[str, bool, int | None]]:
    """Yield the path of each field of an event, whether it is required, and the maximum length of a string."""
    for name, value in schema["properties"].items():
        inner, path = resolved(value), f"{prefix}{name}"
        if "properties" in inner:
            yield from fields(inner, f"{path}.")
        else:
            yield path, name in schema["required"], inner.get("maxLength")


def test_every_field_is_listed() -> None:
    """The API page lists the same fields of an event as the OpenAPI document, with the same limits."""
    section = text_of("api.md").split("\n## Events\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| ([^|]+) \|", section, re.MULTILINE)
    expected = list(fields(SCHEMAS["Event"]))
    assert {name for name, _ in rows} == {name for name, _, _ in expected}
    types = dict(rows)
    for name, required, longest in expected:
        assert ("optional" in types[name]) != required, name
        assert longest is None or f"string, at most {longest}" in types[name], name


# --- metrics.md


def test_every_outcome_is_listed() -> None:
    """The metrics page lists every outcome of an event, with every code that it can have."""
    section = text_of("metrics.md").split("\n### Outcomes of events\n")[1]
    listed, outcome = [], ""
    for names, codes in re.findall(r"^\| (`\w+`)? *\| ([^|]*)\| [A-Z]", section, re.MULTILINE):
        outcome = names.strip("`") or outcome
        listed += [(outcome, code) for code in re.findall(r"`(\w+)`", codes) or [""]]
    assert sorted(listed) == sorted(ENTRIES)
