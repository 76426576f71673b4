"""The log of a real ``twistd``: its two formats, where it goes, and what is in it of a request."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import requests as http

from tests.support.blocking_client import is_ready
from tests.support.client import App, batch
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.process import Twistd
from tests.support.waiting import wait_for

CARELESS = Path(__file__).parents[1] / "support" / "careless.tac"

NOWHERE = {"TK__DATABASE__URL": "postgresql://nobody@127.0.0.1:1/none"}
"""A database that is not there: enough for whoever wants to see lines only."""

JSON = {"TK__SERVER__LOG_FORMAT": "json"}

Line = dict[str, Any]


def lines(text: str) -> list[Line]:
    """Each of them one flat object, with what all have and no nulls."""
    found: list[Line] = [json.loads(line) for line in text.splitlines()]
    for line in found:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["time"])
        assert line["level"] in ("debug", "info", "warn", "error", "critical")
        assert line["event"]
        assert "message" in line
        assert line["logger"]
        assert not [value for value in line.values() if value is None or isinstance(value, (dict, list))]
    return found


def named(event: str, among: list[Line]) -> list[Line]:
    return [line for line in among if line["event"] == event]


def ask(server: Twistd, path: str, request_id: str, method: str = "GET", body: str = "") -> int:
    headers = {"X-Request-ID": request_id}
    return http.request(method, server.url + path, headers=headers, data=body.encode(), timeout=20).status_code


def test_json(directory: Path, database: Database) -> None:
    """Every line is an object, whoever it is from; a request has one, with all that is known of it."""
    app = App().install(database)
    settings = {"TK__DATABASE__URL": database.dsn, "TK__SERVER__LOG_LEVEL": "debug", **JSON}
    with Twistd(directory, settings) as server:
        wait_for(lambda: is_ready(server.url))
        body = batch([make_event(), make_event(service__name="")])
        headers = {**app.headers(body), "X-Request-ID": 'visible"\\{id}'}
        assert http.post(server.url + app.path, data=body, headers=headers, timeout=20).status_code == 207
        assert ask(server, "/nowhere/at/all", "lost") == 404
        assert server.stop() == 0
        found = lines(server.log)
    assert {"listening", "database_connected", "stopped", "message"} <= {line["event"] for line in found}
    (stored,) = [line for line in named("request", found) if line["status"] == 207]
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
        "org_id": app.org_id,
        "app_id": app.app_id,
    }
    (lost,) = [line for line in named("request", found) if line["request_id"] == "lost"]
    assert (lost["route"], lost["status"], lost["code"], lost["level"]) == ("none", 404, "not_found", "info")


def test_text(directory: Path, database: Database) -> None:
    """A line for people, at the level that was asked for."""
    app = App().install(database)
    with Twistd(directory, {"TK__DATABASE__URL": database.dsn}) as server:
        wait_for(lambda: is_ready(server.url))
        body = batch([make_event()])
        headers = {**app.headers(body), "X-Request-ID": "mine"}
        assert http.post(server.url + app.path, data=body, headers=headers, timeout=20).status_code == 200
        assert server.stop() == 0
    assert re.search(
        r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} \[tkserver\.access#info\] POST /v1/ingest/\{org_id\}/\{app_id\} 200"
        rf" \d+\.\dms received=1 accepted=1 org_id={app.org_id} app_id={app.app_id} request_id=mine$",
        server.log,
        re.MULTILINE,
    )
    assert "/health" not in server.log


def test_level(directory: Path) -> None:
    """Nothing less severe is written, whoever says it."""
    settings = {**NOWHERE, **JSON, "TK__SERVER__LOG_LEVEL": "warn"}
    with serving_quietly(directory, settings) as server:
        server.wait_for_line("database_awaited")
        assert server.stop() == 0
        assert {line["level"] for line in lines(server.log)} == {"warn"}


@contextmanager
def serving_quietly(directory: Path, settings: dict[str, str]) -> Iterator[Twistd]:
    """A server that does not say where it listens."""
    server = Twistd(directory, settings).launch()
    try:
        yield server
    finally:
        server.stop()


def test_sample(directory: Path) -> None:
    """What succeeds may be left out; what is refused is not."""
    settings = {**NOWHERE, **JSON, "TK__SERVER__LOG_SAMPLE": "0", "TK__SERVER__LOG_LEVEL": "debug"}
    with Twistd(directory, settings) as server:
        for _ in range(5):
            assert ask(server, "/health", "fine") == 200
        assert ask(server, "/nowhere", "lost") == 404
        assert server.stop() == 0
        assert [line["request_id"] for line in named("request", lines(server.log))] == ["lost"]


class TestWhereItGoes:
    """By twistd's own options, in both formats."""

    @pytest.mark.parametrize("log_format", ["text", "json"])
    @pytest.mark.parametrize("by_tac", [False, True])
    def test_logfile(self, directory: Path, log_format: str, by_tac: bool) -> None:
        """``--logfile`` names it; a signal puts it aside, also where somebody has moved it away."""
        what = ("-y", str(CARELESS)) if by_tac else ("tkserver",)
        log, old = directory / "x.log", directory / "x.log.1"
        settings = {**NOWHERE, "TK__SERVER__LOG_FORMAT": log_format}
        server = Twistd(directory, settings, ("-n", f"--logfile={log}", *what)).launch()
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
        everything = "".join(path.read_text() for path in (old, directory / "moved", log))
        assert "Server Shut Down" in log.read_text()
        if log_format == "json":
            assert named("stopped", lines(everything))

    def test_daemon(self, directory: Path) -> None:
        """Without a name it is ``twistd.log``; standard output is none for a daemon."""
        assert Twistd(directory, NOWHERE, ("--logfile=-", "tkserver")).launch().wait() == 1
        server = Twistd(directory, {**NOWHERE, **JSON}, ("tkserver",)).launch()
        assert server.wait() == 0
        log, pid_file = directory / "twistd.log", directory / "twistd.pid"
        try:
            wait_for(lambda: named("listening", lines(log.read_text())))
        finally:
            os.kill(int(pid_file.read_text()), signal.SIGTERM)
        wait_for(lambda: not pid_file.exists())
        assert named("stopped", lines(log.read_text()))

    def test_standard_output(self, directory: Path) -> None:
        """``--logfile=-``."""
        with Twistd(directory, {**NOWHERE, **JSON}, ("-n", "--logfile=-", "tkserver")) as server:
            assert server.stop() == 0
            assert named("stopped", lines(server.log))

    def test_cannot_be_written(self, directory: Path) -> None:
        """One line says so, and the process ends."""
        server = Twistd(directory, NOWHERE, ("-n", "--logfile=/none/such/log", "tkserver")).launch()
        assert server.wait() == 1
        assert server.log.startswith("tkserver: cannot write the log: ")
        assert server.log.count("\n") == 1

    def test_own_logger(self, directory: Path) -> None:
        """``--logger`` gets the events as they are, and the formats mean nothing then."""
        (directory / "own.py").write_text(OWN_LOGGER)
        os.environ["PYTHONPATH"] = str(directory)
        try:
            server = Twistd(directory, {**NOWHERE, **JSON}, ("-n", "--logger=own.observer", "tkserver")).launch()
        finally:
            del os.environ["PYTHONPATH"]
        seen = directory / "own.log"
        try:
            wait_for(lambda: seen.exists() and "listening http" in seen.read_text())
            url = seen.read_text().split("listening ")[1].split()[0]
            assert http.get(f"{url}/nowhere", headers={"X-Request-ID": "mine"}, timeout=20).status_code == 404
        finally:
            assert server.stop() == 0
        assert "request None 404 mine" in seen.read_text()
        assert server.log == ""

    @pytest.mark.parametrize("log_format", ["text", "json"])
    def test_syslog(self, directory: Path, log_format: str) -> None:
        """``--syslog`` and ``--prefix``."""
        with syslog() as received:
            settings = {**NOWHERE, "TK__SERVER__LOG_FORMAT": log_format}
            server = Twistd(directory, settings, ("-n", "--syslog", "--prefix=tk", "tkserver")).launch()
            try:
                wait_for(lambda: "is not available, retrying" in received())
            finally:
                assert server.stop() == 0
            wait_for(lambda: "Server Shut Down" in received())
        entries = [re.fullmatch(r"<(\d+)>.{15} tk: (.*)", entry, re.DOTALL) for entry in received().split("\0")]
        assert all(entries)
        said = {str(entry[2]): int(entry[1]) % 8 for entry in entries if entry}
        if log_format == "json":
            lines("\n".join(said))
        assert {severity for text, severity in said.items() if "is not available, retrying" in text} == {4}  # warning
        assert {severity for text, severity in said.items() if "listens on" in text} == {6}  # informational
        assert server.log == ""


OWN_LOGGER = """
from twisted.logger import ILogObserver
from zope.interface import provider

@provider(ILogObserver)
def write(event):
    with open("own.log", "a") as log:
        status = event["exchange"].status if "exchange" in event else None
        print(event.get("event"), event.get("url"), status, event.get("request_id"), file=log)

def observer():
    return write
"""


@contextmanager
def syslog() -> Iterator[Any]:
    """The system's log, where there is none; what gives all that it has received, with a NUL between the entries."""
    path = Path("/dev/log")
    if os.getuid() != 0 or path.exists() or path.is_symlink():
        pytest.skip("takes root, and a machine without a system log")
    entries: list[str] = []
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as log:
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
    """Of handlers that nobody would write: each is logged once, with the request that it is of."""

    WAYS = {
        "raise_value": "request_failed",
        "raise_decode": "request_failed",
        "raise_caused": "request_failed",
        "leave_failed": "unhandled_error",
        "leave_raised": "unhandled_error",
        "leave_coroutine": "unhandled_error",
        "leave_chain": "unhandled_error",
        "leave_cycle": "unhandled_error",
    }

    def test_json(self, directory: Path) -> None:
        with Twistd(directory, {**NOWHERE, **JSON}, ("-ny", str(CARELESS))) as server:
            for way, event in self.WAYS.items():
                status = ask(server, f"/careless/{way}", way, "POST", "marked é")
                assert status == (500 if event == "request_failed" else 204)
                # Others come in between, and are not blamed.
                assert ask(server, "/careless/collect", f"after-{way}", "POST") == 204
            wait_for(lambda: server.log.count("still_at_it") == 2)
            assert server.stop() == 0  # which is when the last of them are found
            found = lines(server.log)
        assert "marked" not in server.log
        failures = [line for line in found if "traceback" in line]
        assert {line["request_id"]: line["event"] for line in failures} == self.WAYS
        assert len(failures) == len(self.WAYS)
        assert "Unhandled error in Deferred" not in server.log
        for line in failures:
            assert line["level"] == "critical"
            assert line["exception"] in ("ValueError", "KeyError", "UnicodeDecodeError", "UnicodeEncodeError")
            assert line["exception"] in line["traceback"]
            if line["request_id"] != "leave_failed":  # which was never raised
                assert "careless.tac" in line["traceback"]
        (caused,) = [line for line in failures if line["request_id"] == "raise_caused"]
        assert "Caused by:" in caused["traceback"]
        coroutine, callback = named("still_at_it", found)
        assert coroutine["request_id"] == "leave_coroutine"
        assert "request_id" not in callback  # nothing says for whom it is called
        ended = [line["request_id"] for line in named("request", found)]
        assert ended == [one for way in self.WAYS for one in (way, f"after-{way}")]
        (failed, *_) = named("request", found)
        assert (failed["level"], failed["status"], failed["code"]) == ("error", 500, "internal_error")

    def test_text(self, directory: Path) -> None:
        """The traceback follows its line, each line of it after a tab."""
        with Twistd(directory, NOWHERE, ("-ny", str(CARELESS))) as server:
            assert ask(server, "/careless/raise_value", "mine", "POST", "marked") == 500
            assert server.stop() == 0
        assert re.search(
            r"#critical\] a request failed request_id=mine\n\tTraceback .*\n(\t.*\n)+\tValueError \(its text is not",
            server.log,
        )
        assert "marked" not in server.log

    def test_whoever_logs(self, directory: Path) -> None:
        """Threads, ``print``, warnings, Twisted's old interface: objects all the same, and silent about values."""
        with Twistd(directory, {**NOWHERE, **JSON}, ("-ny", str(CARELESS))) as server:
            assert ask(server, "/careless/log_exceptions", "mine", "POST", "marked") == 204
            assert ask(server, "/careless/uncaught", "yours", "POST", "marked") == 204
            wait_for(lambda: server.log.count("nobody could catch") == 2)
            assert server.stop() == 0
            found = lines(server.log)
        assert "marked" not in server.log
        odd, broken = named("odd", found)
        assert odd["message"].startswith("one, ValueError (text omitted")
        assert odd["message"].endswith("and\nanother line")
        assert odd["odd"] == "[1]"
        assert "no such" in broken["message"]
        assert [line["message"] for line in named("output", found)] == ["printed", "in two lines"]
        assert "RuntimeWarning: a warning" in named("warning", found)[0]["message"]
        old, formatted = [line for line in found if line["message"].startswith("an old line")]
        assert old["exception"] == "ValueError"
        assert "text omitted" in formatted["message"]
        assert {line["request_id"] for line in (odd, broken, old, formatted)} == {"mine"}
