"""The OpenAPI document: it is one, it is complete, and a live server does what it says."""

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
from tests.support.waiting import wait_for
from tkserver.storage.embedded import demo
from tkserver.wire.api_errors import ApiError
from tkserver.wire.signature import sign, signed_message

PATH = Path(__file__).parents[2] / "docs" / "openapi.yaml"
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
                # The contract ignores headers and query parameters that it does not name: they are no mistake.
                "allow-extra-parameters": False,
            },
            "checks": {
                "negative_data_rejection": {
                    # Do not track goes before a look at the body, and one wrong event is no reason to refuse the rest.
                    "expected-statuses": ["204", "207", "4xx"],
                },
            },
        }
    ),
)


# --- the document by itself


def resolved(value: Any) -> Any:
    """What a reference stands for; anything else is itself."""
    while isinstance(value, dict) and "$ref" in value:
        name = value["$ref"].removeprefix("#/")
        value = DOCUMENT
        for key in name.split("/"):
            value = value[key]
    return value


def answers() -> Iterator[tuple[str, str, int, dict[str, Any]]]:
    """Every documented answer: its path, method and status."""
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            for status, answer in operation["responses"].items():
                yield path, method, int(status), resolved(answer)


def codes_in(schema: Any) -> Iterator[str]:
    """The values that a schema allows for ``error.code``."""
    schema = resolved(schema)
    if isinstance(schema, dict):
        yield from schema.get("properties", {}).get("code", {}).get("enum", ())
        for inner in schema.values():
            yield from codes_in(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from codes_in(inner)


def refusals(base: type[ApiError] = ApiError) -> Iterator[type[ApiError]]:
    """All subclasses that have a code of their own."""
    for refusal in base.__subclasses__():
        if hasattr(refusal, "code"):
            yield refusal
        yield from refusals(refusal)


def test_valid() -> None:
    """The document is a valid OpenAPI document."""
    SCHEMA.validate()


def test_codes() -> None:
    """The document lists the codes that the server has and no others, each under its status."""
    documented = {(status, code) for *_, status, answer in answers() for code in codes_in(answer.get("content"))}
    assert documented == {(refusal.status, refusal.code) for refusal in refusals()}


@pytest.mark.parametrize(
    ("path", "method", "status", "answer"),
    [pytest.param(*answer, id=f"{answer[1]} {answer[0]} {answer[2]}") for answer in answers()],
)
def test_answers(path: str, method: str, status: int, answer: dict[str, Any]) -> None:
    """Every documented answer has the headers that all have, and JSON with examples that fit unless it is empty."""
    headers = answer["headers"].keys()
    assert "X-Clacks-Overhead" in headers
    assert ("Retry-After" in headers) == (status in (429, 503))
    assert ("WWW-Authenticate" in headers) == (status == 401)
    assert ("Allow" in headers) == (status == 405)
    assert ("Content-Length" in headers) == ("content" in answer) == (status != 204)
    for content in answer.get("content", {}).values():
        examples = [one["value"] for one in content.get("examples", {}).values()] or [content["example"]]
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


# --- a live server


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """Keeps its connections; pays no heed to proxies in the environment."""
    with requests.Session() as session:
        session.trust_env = False
        yield session


@pytest.fixture(scope="module")
def url(scratch: Path, session: requests.Session) -> Iterator[str]:
    """Where a real process listens, with the embedded database and so with the demo application."""
    directory = Path(tempfile.mkdtemp(dir=scratch))
    # All come from one address, and many are meant to fail.
    settings = {"TK__DATABASE__DATA_DIR": str(directory / "data"), "TK__RATE_LIMIT__AUTH_FAILURES_PER_MINUTE": "0"}
    with Twistd(directory, settings) as server:
        wait_for(lambda: session.get(f"{server.url}/health/ready", timeout=5).ok, lambda: server.log)
        yield server.url


@pytest.fixture(scope="module")
def statuses() -> Iterator[Counter[int]]:
    """How often the server gave each status to signed batches."""
    counted: Counter[int] = Counter()
    yield counted
    # Else something is wrong with the signatures, and what lies behind their check was never reached.
    assert not counted or {200, 204, 207, 400, 409, 415} <= counted.keys()


def header(request: requests.PreparedRequest, name: str) -> str | None:
    """The value of a header, where it is there."""
    value = request.headers.get(name)
    return value.decode("latin-1") if isinstance(value, bytes) else value


class Signed(AuthBase):
    """Turns a generated request into one of the demo application and signs it.

    Only what is valid is replaced, by something that is valid *here*; what was generated to be wrong stays wrong.

    :param beside: an event that is put before those of the batch.
    """

    _IDS = re.compile(r"/v1/ingest/{0}/{0}(?![^/?#])".format("[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"))
    _SIGNATURE = re.compile(r"[0-9A-Fa-f]{64}")
    _TIMESTAMP = re.compile(r"[0-9]+")
    _NONCE = re.compile(r"[!-~]{1,128}")
    _SIZE = re.compile(r"[1-9][0-9]{0,2}|1000")
    # What a schema cannot say. To it 5.0 is an integer, which the server takes as 5 only.
    _INTEGRAL = re.compile(rb'("(?:batch_size|retry_count)": [0-9]+)\.0\b')
    # With an offset, times at either end of the calendar have no place in it as UTC.
    _END_OF_TIME = re.compile(rb'"(?:0001|9999)(?=-[0-9]{2}-[0-9]{2}T)')

    def __init__(self, beside: dict[str, Any] | None = None) -> None:
        self._beside = beside
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
        sent: Any = request.body or b""
        body: bytes = sent.encode() if isinstance(sent, str) else sent
        body = self._END_OF_TIME.sub(b'"2001', self._INTEGRAL.sub(rb"\1", body))
        try:
            batch = json.loads(body)
        except ValueError:
            batch = None
        if isinstance(batch, dict) and isinstance(batch.get("events"), list):
            events = batch["events"]
            if self._beside and 0 < len(events) < 1000:
                events.insert(0, self._beside)
                body = json.dumps(batch).encode()
            # A schema cannot say that this is the number of events.
            if self._SIZE.fullmatch(header(request, "X-Batch-Size") or ""):
                request.headers["X-Batch-Size"] = str(len(events))
        return gzip.compress(body) if header(request, "Content-Encoding") == "gzip" else body


GOOD_EVENT = DOCUMENT["paths"][INGEST]["post"]["requestBody"]["content"]["application/json"]["examples"][
    "required keys only"
]["value"]["events"][0]

CLIENTS = (None, Signed(), Signed(beside=GOOD_EVENT))


@SCHEMA.parametrize()
def test_live(case: Any, url: str, session: requests.Session, statuses: Counter[int]) -> None:
    """The server answers generated requests, right and wrong, signed and unsigned, as the document says."""
    # An empty list of encodings is none (RFC 9110, section 8.4), though not one of those that the document lists.
    hypothesis.assume(case.headers.get("Content-Encoding") != "")
    for client in CLIENTS:
        response = case.call(base_url=url, session=session, auth=client)
        case.validate_response(response)
        if client and (case.path, case.method) == (INGEST, "POST"):
            statuses[response.status_code] += 1
