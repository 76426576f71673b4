"""Upper limits to compare with: the speed of ``COPY`` in PostgreSQL, and of a Klein route that does nothing."""

from __future__ import annotations

import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg2

from bench.requests import APP_ID, ORG_ID

_COLUMNS = (
    "schema_version, service_name, service_version, service_language, service_language_version, user_id, session_id,"
    " os, os_version, arch, ci, shell, sdk_version, event_id, timestamp, event_type, event_category, event_data,"
    " transmission_timestamp, batch_size, retry_count, org_id, app_id"
)
_COPY = f"COPY events ({_COLUMNS}) FROM STDIN"


@dataclass(frozen=True)
class CopyResult:
    """The speed of ``COPY``.

    :ivar seconds_per_commit: the median.
    """

    events_per_second: float
    seconds_per_commit: float


def measure_copy(dsn: str, bodies: list[bytes]) -> CopyResult:
    """Copy the events of each body into the table in a transaction of its own, over one connection."""
    batches = [json.loads(body)["events"] for body in bodies]
    texts = ["".join(_copy_line(event) for event in batch) for batch in batches]
    times: list[float] = []
    with closing(psycopg2.connect(dsn)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for text in texts:
                started = time.perf_counter()
                cursor.copy_expert(_COPY, io.StringIO(text))
                times.append(time.perf_counter() - started)
    return CopyResult(sum(map(len, batches)) / sum(times), statistics.median(times))


def _copy_line(event: dict[str, Any]) -> str:
    """Return an event in the text format of ``COPY``, in the order of ``_COLUMNS``."""
    details, metadata = event["event"], event["metadata"]
    service, environment = event["service"], event["environment"]
    values = (
        event["schema_version"],
        *(service[name] for name in ("name", "version", "language", "language_version")),
        *(event[name] for name in ("user_id", "session_id")),
        *(environment[name] for name in ("os", "os_version", "arch", "ci", "shell")),
        *(metadata["sdk_version"], event["event_id"], event["timestamp"]),
        *(details[name] for name in ("type", "category", "data")),
        *(metadata[name] for name in ("transmission_timestamp", "batch_size", "retry_count")),
        *(ORG_ID, APP_ID),
    )
    return "\t".join(map(_copy_field, values)) + "\n"


def _copy_field(value: object) -> str:
    text = json.dumps(value) if isinstance(value, (dict, bool)) else str(value)
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")


_KLEIN = """
from klein import Klein
from twisted.internet import reactor
from twisted.web.server import Site

app = Klein()

@app.route("/v1/ingest/<org_id>/<app_id>", methods=["POST"])
def constant(request, org_id, app_id):
    request.content.read()
    request.setHeader("Content-Type", "application/json")
    request.setHeader("Content-Length", "2")
    return b"{}"

site = Site(app.resource(), parsePOSTFormSubmission=False)
site.log = lambda request: None
port = reactor.listenTCP(0, site, interface="127.0.0.1", backlog=1024)
print(port.getHost().port, flush=True)
reactor.run()
"""


@contextmanager
def constant_klein_route() -> Iterator[int]:
    """Run a Klein server that reads the body and always sends the same response.

    :return: its port.
    """
    process = subprocess.Popen([sys.executable, "-c", _KLEIN], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()
