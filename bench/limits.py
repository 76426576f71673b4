"""The limits to compare with: what PostgreSQL takes by COPY, and what twisted.web and Klein answer at all."""

from __future__ import annotations

import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tkserver.storage.blocking import BlockingConnections
from tkserver.storage.events import Submission
from tkserver.wire.batch import read_batch
from tkserver.wire.event import NIL_UUID

_COLUMNS = (
    "schema_version, service_name, service_version, service_language, service_language_version, user_id, session_id,"
    " os, os_version, arch, ci, shell, sdk_version, event_id, timestamp, event_type, event_category, event_data,"
    " transmission_timestamp, batch_size, retry_count, org_id, app_id"
)
_COPY = f"COPY events ({_COLUMNS}) FROM STDIN"


def copy(dsn: str, bodies: list[bytes], org_id: str, app_id: str) -> tuple[float, float]:
    """Write the bodies' events, a body a commit, over one connection.

    :return: events per second, and the median of the seconds that one commit takes.
    """
    texts = [_copy_text(body, f"{org_id}\t{app_id}\n") for body in bodies]
    times: list[float] = []
    connection = BlockingConnections().connect(dsn)
    try:
        with connection.cursor() as cursor:
            for text, _ in texts:
                began = time.perf_counter()
                cursor.copy_expert(_COPY, io.StringIO(text))
                times.append(time.perf_counter() - began)
    finally:
        connection.close()
    return sum(events for _, events in texts) / sum(times), statistics.median(times)


def _copy_text(body: bytes, tail: str) -> tuple[str, int]:
    """The events of a body in COPY's text format, and how many they are."""
    submission = Submission.of(NIL_UUID, NIL_UUID, None, read_batch(body).events)
    rows = [json.loads(row.origin + b"]") + json.loads(row.values) for row in submission.rows.values()]
    return "".join("\t".join(map(_field, row)) + "\t" + tail for row in rows), len(rows)


def _field(value: object) -> str:
    if value is None:
        return r"\N"
    text = json.dumps(value) if isinstance(value, (dict, list, bool)) else str(value)
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
    """The port of a server that reads a body and answers the same to each."""
    process = subprocess.Popen([sys.executable, "-c", _KLEIN], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()
