"""The log of a ``twistd`` process: its two formats, its destinations, and the lines of requests and failures."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import requests as http

from tests.support.client import App, batch
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.json_log import lines_of_event, parse_json_log
from tests.support.process import Twistd
from tests.support.waiting import wait_for

FAULTY_TAC = Path(__file__).parents[1] / "support" / "faulty_handlers.tac"

UNREACHABLE = {"TK__DATABASE__URL": "postgresql://nobody@127.0.0.1:1/none"}
"""A database that cannot be reached, for tests that need only the log."""

JSON = {"TK__SERVER__LOG_FORMAT": "json"}


def send(server: Twistd, path: str, request_id: str, method: str = "GET", body: str = "") -> int:
    """Send a request with this id, and return the status of the response."""
    headers = {"X-Request-ID": request_id}
    return http.request(method, server.url + path, headers=headers, data=body.encode(), timeout=20).status_code


def test_json_format(directory: Path, database: Database) -> None:
    """Every line is a JSON object, and the line of a request contains everything that is known about it."""
    app = App().install(database)
    settings = {"TK__DATABASE__URL": database.dsn, "TK__SERVER__LOG_LEVEL": "debug", **JSON}
    with Twistd(directory, settings) as server:
        server.wait_until_ready()
        body = batch([make_event(), make_event(service__name="")])
        headers = {**app.headers(body), "X-Request-ID": 'visible"\\{id}'}
        assert http.post(server.url + app.path, data=body, headers=headers, timeout=20).status_code == 207
        assert send(server, "/no/such/path", "unknown") == 404
        assert server.stop() == 0
        lines = parse_json_log(server.log)
    assert {"listening", "database_connected", "stopped", "message"} <= {line["event"] for line in lines}
    (stored,) = [line for line in lines_of_event("request", lines) if line["status"] == 207]
    assert 0 < stored.pop("seconds") < 20
    assert stored.pop("time")
    assert re.fullmatch(r"POST /v1/ingest/\{org_id\}/\{app_id\} 207 \d+\.\dms .*", stored.pop("message"))
    assert stored == {
        "level": "info",
        "event": "request",
        "logger": "tkserver.access",
        "request_id": 'visible"\\{id}',
        "method": "POST",
        "route": "/v1/ingest/{org_id}/{app_id}",
        "status": 207,
        "received": 2,
        "accepted": 1,
        "duplicates": 0,
        "rejected": 1,
        "quarantined": 1,
        "org_id": app.org_id,
        "app_id": app.app_id,
    }
    (unknown,) = [line for line in lines_of_event("request", lines) if line["request_id"] == "unknown"]
    assert [unknown[key] for key in ("route", "status", "code", "level")] == ["none", 404, "not_found", "info"]


def test_text_format(directory: Path, database: Database) -> None:
    """The line of a request is readable text, and lines below the configured level are not written."""
    app = App().install(database)
    with Twistd(directory, {"TK__DATABASE__URL": database.dsn}) as server:
        server.wait_until_ready()
        body = batch([make_event()])
        headers = {**app.headers(body), "X-Request-ID": "mine"}
        assert http.post(server.url + app.path, data=body, headers=headers, timeout=20).status_code == 200
        assert server.stop() == 0
    assert re.search(
        r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} info  POST /v1/ingest/\{org_id\}/\{app_id\} 200"
        rf" \d+\.\dms received=1 accepted=1 org_id={app.org_id} app_id={app.app_id} request_id=mine \[access\]$",
        server.log,
        re.MULTILINE,
    )
    assert "/health" not in server.log


def test_level(directory: Path) -> None:
    """No line below the configured level is written, whatever its source."""
    settings = {**UNREACHABLE, **JSON, "TK__SERVER__LOG_LEVEL": "warn"}
    server = Twistd(directory, settings).launch()
    try:
        server.wait_for_line("database_awaited")
    finally:
        assert server.stop() == 0
    assert {line["level"] for line in parse_json_log(server.log)} == {"warn"}


def test_sample(directory: Path) -> None:
    """With a sample of 0, successful requests are not logged, and other requests are."""
    settings = {**UNREACHABLE, **JSON, "TK__SERVER__LOG_SAMPLE": "0", "TK__SERVER__LOG_LEVEL": "debug"}
    with Twistd(directory, settings) as server:
        for _ in range(5):
            assert send(server, "/health", "successful") == 200
        assert send(server, "/unknown", "failed") == 404
        assert server.stop() == 0
        requests = lines_of_event("request", parse_json_log(server.log))
        assert [line["request_id"] for line in requests] == ["failed"]


class TestDestinations:
    """The destinations that the options of ``twistd`` select, in both formats."""

    @pytest.mark.parametrize("log_format", ["text", "json"])
    @pytest.mark.parametrize("by_tac", [False, True])
    def test_logfile(self, directory: Path, log_format: str, by_tac: bool) -> None:
        """SIGUSR1 renames the file of ``--logfile`` and opens a new one, also if the file has been moved."""
        application = ("-y", str(FAULTY_TAC)) if by_tac else ("tkserver",)
        log, old = directory / "x.log", directory / "x.log.1"
        settings = {**UNREACHABLE, "TK__SERVER__LOG_FORMAT": log_format}
        server = Twistd(directory, settings, ("-n", f"--logfile={log}", *application)).launch()
        try:
            wait_for(lambda: log.exists() and "is not available, retrying" in log.read_text())
            os.kill(server.pid, signal.SIGUSR1)
            wait_for(old.exists)
            assert "listens on" in old.read_text()
            log.rename(directory / "moved")
            os.kill(server.pid, signal.SIGUSR1)
            wait_for(log.exists)
        finally:
            assert server.stop() == 0
        assert server.log == ""
        text = "".join(path.read_text() for path in (old, directory / "moved", log))
        assert "stopped" in log.read_text()
        if log_format == "json":
            assert lines_of_event("stopped", parse_json_log(text))

    def test_daemon(self, directory: Path) -> None:
        """A daemon logs to ``twistd.log`` by default, and cannot log to standard output."""
        assert Twistd(directory, UNREACHABLE, ("--logfile=-", "tkserver")).launch().wait() == 1
        server = Twistd(directory, {**UNREACHABLE, **JSON}, ("tkserver",)).launch()
        assert server.wait() == 0
        log, pid_file = directory / "twistd.log", directory / "twistd.pid"
        try:
            wait_for(lambda: lines_of_event("listening", parse_json_log(log.read_text())))
        finally:
            os.kill(int(pid_file.read_text()), signal.SIGTERM)
        wait_for(lambda: not pid_file.exists())
        assert lines_of_event("stopped", parse_json_log(log.read_text()))

    def test_standard_output(self, directory: Path) -> None:
        """``--logfile=-`` writes the log to standard output."""
        with Twistd(directory, {**UNREACHABLE, **JSON}, ("-n", "--logfile=-", "tkserver")) as server:
            assert server.stop() == 0
            assert lines_of_event("stopped", parse_json_log(server.log))

    def test_unwritable_file(self, directory: Path) -> None:
        """The process ends with one line if the log cannot be written."""
        server = Twistd(directory, UNREACHABLE, ("-n", "--logfile=/none/such/log", "tkserver")).launch()
        assert server.wait() == 1
        assert server.log.startswith("tkserver: cannot write the log: ")
        assert server.log.count("\n") == 1

    def test_custom_observer(self, directory: Path) -> None:
        """The observer of ``--logger`` receives the log events unformatted."""
        (directory / "custom.py").write_text(CUSTOM_OBSERVER)
        python_path = os.pathsep.join([str(directory), os.environ.get("PYTHONPATH", "")])
        settings = {**UNREACHABLE, **JSON, "PYTHONPATH": python_path}
        log = directory / "custom.log"
        log.touch()
        log.chmod(0o666)  # the observer also writes after the server has given up root privileges
        server = Twistd(directory, settings, ("-n", "--logger=custom.observer", "tkserver")).launch()
        try:
            wait_for(lambda: log.exists() and "listening http" in log.read_text())
            url = log.read_text().split("listening ")[1].split()[0]
            assert http.get(f"{url}/unknown", headers={"X-Request-ID": "mine"}, timeout=20).status_code == 404
        finally:
            assert server.stop() == 0
        assert "request None 404 mine" in log.read_text()
        assert server.log == ""

    @pytest.mark.parametrize("log_format", ["text", "json"])
    def test_syslog(self, directory: Path, log_format: str) -> None:
        """``--syslog`` writes the log to the system log, with the prefix of ``--prefix``."""
        with system_log() as received:
            settings = {**UNREACHABLE, "TK__SERVER__LOG_FORMAT": log_format}
            server = Twistd(directory, settings, ("-n", "--syslog", "--prefix=tk", "tkserver")).launch()
            try:
                wait_for(lambda: "is not available, retrying" in received())
            finally:
                assert server.stop() == 0
            wait_for(lambda: "stopped" in received())
        entries = [re.fullmatch(r"<(\d+)>.{15} tk: (.*)", entry, re.DOTALL) for entry in received().split("\0")]
        assert all(entries)
        severities = {str(entry[2]): int(entry[1]) % 8 for entry in entries if entry}
        if log_format == "json":
            parse_json_log("\n".join(severities))
        assert {severities[text] for text in severities if "is not available, retrying" in text} == {4}  # warning
        assert {severities[text] for text in severities if "listens on" in text} == {6}  # informational
        assert server.log == ""


CUSTOM_OBSERVER = """
from twisted.logger import ILogObserver
from zope.interface import provider

@provider(ILogObserver)
def write(event):
    with open("custom.log", "a") as log:
        status = event["exchange"].status if "exchange" in event else None
        print(event.get("event"), event.get("url"), status, event.get("request_id"), file=log)

def observer():
    return write
"""


@contextmanager
def system_log() -> Iterator[Callable[[], str]]:
    """Receive what processes send to the system log, on a machine that has none.

    The context is a function that returns all entries, separated by NUL characters.
    """
    path, lock_path = Path("/dev/log"), Path(tempfile.gettempdir(), "tkserver-tests-system-log.lock")
    entries: list[str] = []
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as log, lock_path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other processes run tests, too
        if os.getuid() != 0 or path.exists() or path.is_symlink():
            pytest.skip("needs root privileges and a machine without a system log")
        log.bind(str(path))
        log.setblocking(False)

        def received() -> str:
            with suppress(OSError):
                while True:
                    entries.append(log.recv(65_536).decode())
            return "\0".join(entries)

        try:
            yield received
        finally:
            path.unlink()


class TestFailures:
    """Failures in request handlers, and in what they start."""

    HANDLERS = {
        "raise_value": "request_failed",
        "raise_decode": "request_failed",
        "raise_caused": "request_failed",
        "leave_failed": "unhandled_error",
        "leave_raised": "unhandled_error",
        "leave_coroutine": "unhandled_error",
        "leave_chain": "unhandled_error",
        "leave_cycle": "unhandled_error",
    }

    def test_json_format(self, directory: Path) -> None:
        """Every failure is logged once, with the id of its request, and without the text of the exception."""
        with Twistd(directory, {**UNREACHABLE, **JSON}, ("-ny", str(FAULTY_TAC))) as server:
            for handler, event in self.HANDLERS.items():
                status = send(server, f"/faulty/{handler}", handler, "POST", "marked é")
                assert status == (500 if event == "request_failed" else 204)
                # Another request, which must not be logged as the cause.
                assert send(server, "/faulty/collect", f"after-{handler}", "POST") == 204
            wait_for(lambda: server.log.count("still_running") == 2)
            assert server.stop() == 0  # finds the last failures
            lines = parse_json_log(server.log)
        assert "marked" not in server.log
        failures = [line for line in lines if "traceback" in line]
        assert {line["request_id"]: line["event"] for line in failures} == self.HANDLERS
        assert len(failures) == len(self.HANDLERS)
        unhandled = [line for line in lines if line["message"].startswith("Unhandled error in Deferred")]
        assert all("traceback" in line for line in unhandled)  # Twisted announces each in an additional event
        for line in failures:
            assert line["level"] == "critical"
            assert line["exception"] in ("ValueError", "KeyError", "UnicodeDecodeError", "UnicodeEncodeError")
            assert line["exception"] in line["traceback"]
            if line["request_id"] != "leave_failed":  # this exception is not raised
                assert "faulty_handlers.tac" in line["traceback"]
        (caused,) = [line for line in failures if line["request_id"] == "raise_caused"]
        assert "Caused by:" in caused["traceback"]
        coroutine, callback = lines_of_event("still_running", lines)
        assert coroutine["request_id"] == "leave_coroutine"
        assert "request_id" not in callback  # callbacks do not run in the context of the request
        ids = [line["request_id"] for line in lines_of_event("request", lines)]
        assert ids == [request_id for handler in self.HANDLERS for request_id in (handler, f"after-{handler}")]
        (failed, *_) = lines_of_event("request", lines)
        assert (failed["level"], failed["status"], failed["code"]) == ("error", 500, "internal_error")

    def test_text_format(self, directory: Path) -> None:
        """The lines of a traceback follow the line of the failure, each indented with a tab."""
        with Twistd(directory, UNREACHABLE, ("-ny", str(FAULTY_TAC))) as server:
            assert send(server, "/faulty/raise_value", "mine", "POST", "marked") == 500
            assert server.stop() == 0
        traceback = r"\n\tTraceback .*\n(\t.*\n)+\tValueError \(text omitted: "
        assert re.search(rf"critical a request failed request_id=mine \[.+\]{traceback}", server.log)
        assert "marked" not in server.log

    def test_other_sources(self, directory: Path) -> None:
        """Lines of threads, ``print``, warnings and Twisted's legacy interface are JSON, and contain no values."""
        with Twistd(directory, {**UNREACHABLE, **JSON}, ("-ny", str(FAULTY_TAC))) as server:
            assert send(server, "/faulty/log_exceptions", "mine", "POST", "marked") == 204
            assert send(server, "/faulty/raise_uncaught", "yours", "POST", "marked") == 204
            wait_for(lambda: server.log.count("uncaught exception") == 2)
            assert server.stop() == 0
            lines = parse_json_log(server.log)
        assert "marked" not in server.log
        odd, broken = lines_of_event("odd", lines)
        assert odd["message"].startswith("one, ValueError (text omitted")
        assert odd["message"].endswith("and\nanother line")
        assert odd["odd"] == "[1]"
        assert "no such" in broken["message"]
        assert [line["message"] for line in lines_of_event("output", lines)] == ["printed", "in two lines"]
        assert "RuntimeWarning: a warning" in lines_of_event("warning", lines)[0]["message"]
        legacy, formatted = [line for line in lines if line["message"].startswith("a legacy line")]
        assert legacy["exception"] == "ValueError"
        assert "text omitted" in formatted["message"]
        assert {line["request_id"] for line in (odd, broken, legacy, formatted)} == {"mine"}
