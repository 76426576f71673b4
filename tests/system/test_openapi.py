"""The OpenAPI document: it is valid and complete, and the responses of a server conform to it."""

from __future__ import annotations

import gzip
import json
import re
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
import yaml
from requests.auth import AuthBase

from tests.support.process import Twistd
from tests.support.source import ROOT
from tests.support.waiting import wait_for
from tkserver.storage.embedded import demo
from tkserver.web.dashboard.access import Forbidden, InvalidLink, SignInRequired
from tkserver.web.dashboard.samples import SampleRefused
from tkserver.web.dashboard.shares import InvalidShareLink
from tkserver.wire.api_errors import ApiError, InvalidParameter, MisdirectedRequest
from tkserver.wire.signature import sign, signed_message

PATH = ROOT / "docs" / "openapi.yaml"
DOCUMENT: dict[str, Any] = yaml.safe_load(PATH.read_text())
INGEST = "/v1/ingest/{org_id}/{app_id}"

SCHEMA = schemathesis.openapi.from_path(
    PATH,
    config=schemathesis.Config.from_dict(
        {
            "seed": 1,
            "generation": {
                "deterministic": True,
                "database": "none",
                "max-examples": 100,
                # The server ignores headers and query parameters that the document does not contain.
                "allow-extra-parameters": False,
            },
            "checks": {
                "negative_data_rejection": {
                    # Do Not Track precedes the check of the body, and valid events are accepted with invalid ones.
                    "expected-statuses": ["204", "207", "4xx"],
                },
            },
        }
    ),
)


# --- the document


def resolved(value: Any) -> Any:
    """Return the target of a reference, or the value itself if it is not a reference."""
    while isinstance(value, dict) and "$ref" in value:
        name = value["$ref"].removeprefix("#/")
        value = DOCUMENT
        for key in name.split("/"):
            value = value[key]
    return value


def responses() -> Iterator[tuple[str, str, int, dict[str, Any]]]:
    """Return every documented response with its path, method and status."""
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                yield path, method, int(status), resolved(response)


def codes_in(schema: Any) -> Iterator[str]:
    """Return the values that a schema allows for ``error.code``."""
    schema = resolved(schema)
    if isinstance(schema, dict):
        yield from schema.get("properties", {}).get("code", {}).get("enum", ())
        for inner in schema.values():
            yield from codes_in(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from codes_in(inner)


def error_classes(base: type[ApiError] = ApiError) -> Iterator[type[ApiError]]:
    """Return all subclasses with an error code."""
    for subclass in base.__subclasses__():
        if hasattr(subclass, "code"):
            yield subclass
        yield from error_classes(subclass)


def test_document_is_valid() -> None:
    """The document is a valid OpenAPI document."""
    SCHEMA.validate()


def test_error_codes() -> None:
    """The document contains exactly the error codes of the public port, each with its status."""
    documented = {(status, code) for *_, status, response in responses() for code in codes_in(response.get("content"))}
    on_admin_port_only = {
        *(InvalidParameter, MisdirectedRequest, SignInRequired, InvalidLink, InvalidShareLink, Forbidden, SampleRefused)
    }
    assert documented == {(error.status, error.code) for error in {*error_classes()} - on_admin_port_only}


@pytest.mark.parametrize(
    ("path", "method", "status", "documented"),
    [pytest.param(*values, id=f"{values[1]} {values[0]} {values[2]}") for values in responses()],
)
def test_documented_responses(path: str, method: str, status: int, documented: dict[str, Any]) -> None:
    """Every documented response contains the common headers, and valid examples unless it has no body."""
    headers = documented["headers"].keys()
    assert "X-Clacks-Overhead" in headers
    assert ("Retry-After" in headers) == (status in (429, 503))
    assert ("WWW-Authenticate" in headers) == (status == 401)
    assert ("Allow" in headers) == (status == 405)
    assert ("Content-Length" in headers) == ("content" in documented) == (status != 204)
    for content in documented.get("content", {}).values():
        examples = [example["value"] for example in content.get("examples", {}).values()] or [content["example"]]
        for example in examples:
            response = schemathesis.Response(
                status_code=status,
                headers={"Content-Type": ["application/json"]},
                content=json.dumps(example).encode(),
                request=requests.Request(method, "http://127.0.0.1").prepare(),
                elapsed=0,
                verify=False,
            )
            SCHEMA[path][method].validate_response(response)


# --- a server


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """An HTTP client that reuses connections, and ignores proxies in the environment."""
    with requests.Session() as session:
        session.trust_env = False
        yield session


@pytest.fixture(scope="module")
def url(scratch: Path, session: requests.Session) -> Iterator[str]:
    """The URL of a server with the embedded database, and therefore with the demo application."""
    directory = Path(tempfile.mkdtemp(dir=scratch))
    # All requests come from one address, and many of them must fail to authenticate.
    settings = {"TK__DATABASE__DATA_DIR": str(directory / "data"), "TK__RATE_LIMIT__AUTH_FAILURES_PER_MINUTE": "0"}
    settings["TK__SERVER__CORS_ORIGINS"] = "*"  # so that it applies to the demo application, too
    with Twistd(directory, settings) as server:
        wait_for(lambda: session.get(f"{server.url}/health/ready", timeout=5).ok, lambda: server.log)
        yield server.url


@pytest.fixture(scope="module")
def statuses() -> Iterator[Counter[int]]:
    """The number of responses to signed batches by status."""
    counter: Counter[int] = Counter()
    yield counter
    # Otherwise, the signatures are not valid, and the code after their check is never reached.
    assert not counter or {200, 204, 207, 400, 409, 415} <= counter.keys()


def header(request: requests.PreparedRequest, name: str) -> str | None:
    """Return the value of a header, or ``None``."""
    value = request.headers.get(name)
    return value.decode("latin-1") if isinstance(value, bytes) else value


class Signed(AuthBase):
    """Turns a generated request into a signed request of the demo application.

    Only valid values are replaced, by the values of this server. Values that were generated to be invalid stay invalid.

    :param first_event: an event that is inserted before those of the batch.
    """

    _IDS = re.compile(r"/v1/ingest/{0}/{0}(?![^/?#])".format("[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"))
    _SIGNATURE = re.compile(r"[0-9A-Fa-f]{64}")
    _TIMESTAMP = re.compile(r"[0-9]+")
    _NONCE = re.compile(r"[!-~]{1,128}")
    _SIZE = re.compile(r"[1-9][0-9]{0,2}|1000")
    # In a schema, 5.0 is an integer, but the server accepts only 5.
    _INTEGRAL = re.compile(rb'("(?:batch_size|retry_count)": [0-9]+)\.0\b')
    # In UTC, these times with an offset are outside the calendar.
    _END_OF_TIME = re.compile(rb'"(?:0001|9999)(?=-[0-9]{2}-[0-9]{2}T)')

    def __init__(self, first_event: dict[str, Any] | None = None) -> None:
        self._first_event = first_event
        self._nonces: set[str] = set()

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.url = self._IDS.sub(f"/v1/ingest/{demo.ORG_ID}/{demo.APP_ID}", request.url or "")
        request.body = body = self._body(request)
        timestamp, nonce = header(request, "X-Timestamp") or "", header(request, "X-Nonce")
        if self._TIMESTAMP.fullmatch(timestamp):
            request.headers["X-Timestamp"] = timestamp = str(int(time.time()))
        if nonce is not None:
            request.headers["X-Nonce"] = nonce = self._unused(nonce)
        if nonce is None or "Authorization" in request.headers:
            request.headers["Authorization"] = f"Bearer {demo.TOKEN}"
        if self._SIGNATURE.fullmatch(header(request, "X-Signature") or ""):
            nonce_sent = None if nonce is None else nonce.encode("latin-1")
            message = signed_message(timestamp.encode("latin-1"), nonce_sent, body)
            request.headers["X-Signature"] = sign(demo.SECRET, message).decode()
        return request

    def _unused(self, nonce: str) -> str:
        if nonce in self._nonces:
            return str(uuid.uuid4())
        if self._NONCE.fullmatch(nonce):
            self._nonces.add(nonce)
        return nonce

    def _body(self, request: requests.PreparedRequest) -> bytes:
        content: Any = request.body or b""
        body: bytes = content.encode() if isinstance(content, str) else content
        body = self._END_OF_TIME.sub(b'"2001', self._INTEGRAL.sub(rb"\1", body))
        try:
            batch = json.loads(body)
        except ValueError:
            batch = None
        if isinstance(batch, dict) and isinstance(batch.get("events"), list):
            events = batch["events"]
            if self._first_event and 0 < len(events) < 1000:
                events.insert(0, self._first_event)
                body = json.dumps(batch).encode()
            # A schema cannot express that this is the number of events.
            if self._SIZE.fullmatch(header(request, "X-Batch-Size") or ""):
                request.headers["X-Batch-Size"] = str(len(events))
        return gzip.compress(body) if header(request, "Content-Encoding") == "gzip" else body


@pytest.mark.parametrize("events", [[{}], "none"], ids=["all_events_rejected", "invalid_json"])
def test_flat_errors(url: str, session: requests.Session, events: Any) -> None:
    """The errors that the published SDK gets conform to the document, too."""
    body, timestamp = json.dumps({"events": events}).encode(), str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "X-SDK-Version": "telemetry-kit-rust/0.3.0",
        "X-Timestamp": timestamp,
        "X-Signature": sign(demo.SECRET, signed_message(timestamp.encode(), None, body)).decode(),
        "Authorization": f"Bearer {demo.TOKEN}",
    }
    response = session.post(url + INGEST.format(org_id=demo.ORG_ID, app_id=demo.APP_ID), data=body, headers=headers)
    assert (response.status_code, type(response.json()["error"])) == (400, str)
    SCHEMA[INGEST]["post"].validate_response(schemathesis.Response.from_requests(response, verify=False))


VALID_EVENT = DOCUMENT["paths"][INGEST]["post"]["requestBody"]["content"]["application/json"]["examples"][
    "required keys only"
]["value"]["events"][0]

CLIENTS = (None, Signed(), Signed(first_event=VALID_EVENT))


@SCHEMA.parametrize()
def test_generated_requests(case: Any, url: str, session: requests.Session, statuses: Counter[int]) -> None:
    """The responses to valid and invalid, signed and unsigned generated requests conform to the document."""
    # An empty list means no encoding (RFC 9110, section 8.4), although the document does not list it.
    hypothesis.assume(case.headers.get("Content-Encoding") != "")
    for client in CLIENTS:
        response = case.call(base_url=url, session=session, auth=client)
        case.validate_response(response)
        if client and (case.path, case.method) == (INGEST, "POST"):
            statuses[response.status_code] += 1
