"""The OpenAPI document of the statistics: it is valid and complete, and the responses of a server conform to it."""

from __future__ import annotations

import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
import yaml

from tests.support.database import Database, DatabaseServer
from tests.support.process import Twistd
from tests.support.raw_events import insert, random_event
from tests.support.sample_statistics import aggregate, install_named, store_recent
from tests.support.source import ROOT
from tkserver.insight.panels import APPLICABLE_FILTERS
from tkserver.insight.query import MAX_DAYS
from tkserver.operations.statistics import PANEL_NAMES
from tkserver.storage.blocking import BlockingConnections
from tkserver.wire.api_errors import ApiError, InternalError

PATH = ROOT / "docs" / "openapi-insight.yaml"
DOCUMENT: dict[str, Any] = yaml.safe_load(PATH.read_text())
PANEL_PATHS = {panel: f"/api/v1/apps/{{app}}/{panel}" for panel in PANEL_NAMES}

SCHEMA = schemathesis.openapi.from_path(
    PATH,
    config=schemathesis.Config.from_dict(
        {
            "seed": 1,
            "generation": {"deterministic": True, "database": "none", "max-examples": 40},
            "checks": {"negative_data_rejection": {"expected-statuses": ["304", "4xx"]}},
        }
    ),
)


def resolved(value: Any) -> Any:
    """Return the target of a reference, or the value itself if it is not a reference."""
    while isinstance(value, dict) and "$ref" in value:
        name = value["$ref"].removeprefix("#/")
        value = DOCUMENT
        for key in name.split("/"):
            value = value[key]
    return value


def test_document_is_valid() -> None:
    """The document is a valid OpenAPI document."""
    SCHEMA.validate()


def test_paths() -> None:
    """The document contains the list of applications and every panel, with the parameters of the panel."""
    assert DOCUMENT["paths"].keys() == {"/api/v1/apps", *PANEL_PATHS.values()}
    for panel, path in PANEL_PATHS.items():
        parameters = [resolved(parameter) for parameter in DOCUMENT["paths"][path]["get"]["parameters"]]
        names = [parameter["name"] for parameter in parameters if parameter["in"] == "query"]
        assert names == ["days", "from", "to", "ci", *APPLICABLE_FILTERS[panel]]


def responses() -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Return every documented response with its path and status."""
    for path, operations in DOCUMENT["paths"].items():
        for status, response in operations["get"]["responses"].items():
            yield path, int(status), resolved(response)


def test_errors() -> None:
    """Every documented code exists, and has the status with which it is documented."""
    statuses = {error.code: error.status for error in error_classes()}
    found = set()
    for _, status, response in responses():
        if status >= 400:
            content = response["content"]["application/json"]["schema"]
            for code in content["properties"]["error"]["properties"]["code"]["enum"]:
                assert statuses[code] == status, code
                found.add(code)
        assert ("Retry-After" in response["headers"]) == (status in (429, 503))
        assert ("WWW-Authenticate" in response["headers"]) == (status == 401)
        assert ("ETag" in response["headers"]) == (status in (200, 304))
    assert InternalError.code not in found
    assert {"invalid_parameter", "not_found", "invalid_token", "overloaded", "storage_unavailable"} <= found


def error_classes(base: type[ApiError] = ApiError) -> Iterator[type[ApiError]]:
    """Return all subclasses with an error code."""
    for subclass in base.__subclasses__():
        if hasattr(subclass, "code"):
            yield subclass
        yield from error_classes(subclass)


# --- a server


@pytest.fixture(scope="module")
def module_database(database_server: DatabaseServer) -> Iterator[Database]:
    """A database with statistics of events of all kinds: failures, flags, errors, CI, several systems and versions."""
    with database_server.migrated() as database:
        app = install_named(database, "my-cli")
        store_recent(database, app, range(1, 401))
        connection = BlockingConnections().connect(database.dsn)
        insert(connection, app, [random_event(random.Random(n), n) for n in range(1001, 1401)])
        connection.close()
        install_named(database, "empty")
        aggregate(database)
        yield database


@pytest.fixture(scope="module")
def url(module_database: Database, scratch: Path) -> Iterator[str]:
    """The URL of the admin port of a server with statistics."""
    directory = Path(tempfile.mkdtemp(dir=scratch))  # a worker can set this up twice
    directory.chmod(0o755)
    settings = {"TK__DATABASE__URL": module_database.dsn, "TK__ADMIN__PORT": "0"}
    settings["TK__RATE_LIMIT__AUTH_FAILURES_PER_MINUTE"] = "0"  # many generated requests fail to authenticate
    with Twistd(directory, settings) as server:
        server.wait_until_ready()
        yield server.wait_for_line(r"metrics on (http://\S+)/metrics").split()[-1].removesuffix("/metrics")


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """An HTTP client that reuses connections, and ignores proxies in the environment."""
    with requests.Session() as session:
        session.trust_env = False
        yield session


@pytest.fixture(scope="module")
def statuses() -> Iterator[Counter[int]]:
    """The number of responses to generated requests by status."""
    counter: Counter[int] = Counter()
    yield counter
    assert not counter or {200, 400, 404} <= counter.keys()


@pytest.mark.parametrize("query", ["", "?ci=include", "?from=2025-12-01&to=2026-03-31&ci=include"])
@pytest.mark.parametrize("app", ["my-cli", "empty"])
@pytest.mark.parametrize("panel", PANEL_NAMES)
def test_every_field_is_documented(url: str, session: requests.Session, panel: str, app: str, query: str) -> None:
    """The panels of applications with and without events contain all documented fields, and no others."""
    path = PANEL_PATHS[panel]
    response = session.get(url + path.format(app=app) + query, timeout=30)
    assert response.status_code == 200
    validate(path, response)
    if app == "my-cli" and query:
        lists = [value for value in response.json().values() if isinstance(value, list)]
        assert panel == "quality" or any(lists), "there is nothing to validate"
    etag = response.headers["ETag"]
    unchanged = session.get(response.url, headers={"If-None-Match": etag}, timeout=30)
    assert unchanged.status_code == 304
    validate(path, unchanged)


def validate(path: str, response: requests.Response) -> None:
    """Check a response against the document."""
    SCHEMA[path]["get"].validate_response(schemathesis.Response.from_requests(response, verify=False))


@pytest.mark.parametrize(("headers", "status"), [({"Authorization": "Bearer x"}, 401), ({"Host": "a.example"}, 421)])
def test_other_errors(url: str, session: requests.Session, headers: dict[str, str], status: int) -> None:
    """Errors that generated requests do not cause conform to the document."""
    for path in DOCUMENT["paths"]:
        response = session.get(url + path.format(app="my-cli"), headers=headers, timeout=30)
        assert response.status_code == status
        validate(path, response)


DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def make_consistent(query: dict[str, Any]) -> None:
    """Correct what a schema cannot express about valid parameters. Values that are not valid stay so."""
    days = [str(query[name]) for name in ("from", "to") if name in query]
    if days and all(map(DAY.fullmatch, days)):
        query.pop("days", None)
        query["from"] = query["to"] = f"20{days[0][2:]}"


@SCHEMA.parametrize()
def test_generated_requests(case: Any, url: str, session: requests.Session, statuses: Counter[int]) -> None:
    """The responses to valid and invalid generated requests conform to the document."""
    make_consistent(case.query)
    for app in (None, "my-cli"):
        if app is not None and "app" in case.path_parameters:
            case.path_parameters["app"] = app
        response = case.call(base_url=url, session=session, timeout=30)
        case.validate_response(response)
        statuses[response.status_code] += 1


def test_examples_of_parameters() -> None:
    """The pattern of ``days`` allows what the server allows."""
    pattern = DOCUMENT["components"]["parameters"]["days"]["schema"]["pattern"]
    assert [number for number in range(9999) if re.search(pattern, str(number))] == [*range(1, MAX_DAYS + 1)]
