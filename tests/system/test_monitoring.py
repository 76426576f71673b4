"""What is to be watched: the document, the dashboard and the alerts speak of what a server really says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import pytest_twisted
import yaml

from tests.support.client import App, Client
from tests.support.events import make_event
from tests.support.scrape import Scrape, scrape
from tests.support.server import start_server

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MONITORING = (ROOT / "docs" / "monitoring.md").read_text()
METRICS = (ROOT / "docs" / "metrics.md").read_text()
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
ALERTS = DEPLOY / "prometheus-alerts.yml"
RULES: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]

QUESTIONS = [
    "Is it taking events?",
    "How fast?",
    "What is refused, and why?",
    "Is anything piling up?",
    "Is anything lost?",
]

BY_PROMETHEUS = {"up"}
"""Series that Prometheus adds itself."""

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="needs promtool")


@pytest_twisted.async_yield_fixture(scope="module")
async def used(database_server: Any) -> Any:
    """What a server says that has been used."""
    with database_server.migrated() as database:
        server = await start_server(database)
        client, app = Client(f"http://127.0.0.1:{server.port}"), App().install(database)
        assert (await client.send(app, [make_event(), make_event(user_id="x")])).status == 207
        assert (await client.send(app, [make_event()], changes={"X-Signature": "0"})).status == 401
        yield await scrape(server.admin_port)
        await server.stopService()


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    """All of the dashboard and of the alerts."""
    for panel in panels():
        for target in panel["targets"]:
            yield re.sub(r"\$__\w+", "5m", target["expr"])
    for rule in RULES:
        yield rule["expr"]


def selectors(expression: str) -> list[Any]:
    """What a PromQL expression selects."""
    found: list[Any] = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    assert found, expression
    return found


def test_names(used: Scrape) -> None:
    """Each metric that the dashboard or an alert names exists, and so do its labels and their values."""
    for expression in expressions():
        for selector in selectors(expression):
            assert selector.name in used.names | BY_PROMETHEUS, expression
            for matcher in selector.matchers.matchers:
                if matcher.name not in ("job", "instance"):
                    check_label(used, selector.name, matcher)


def check_label(used: Scrape, name: str, matcher: Any) -> None:
    known = {dict(labels).get(matcher.name) for found, labels in used.samples if found == name}
    values = matcher.value.split("|")
    for value in values:
        fits = [one for one in known if one is not None and re.fullmatch(value, one)]
        assert fits, f"{name} has no {matcher.name} that is {value}, but {known}"


def families(text: str) -> dict[str, str]:
    """The types of all metrics, by their names."""
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))


def test_described(used: Scrape) -> None:
    """The document's table has all metrics of this server, with type and labels, and no others."""
    rows = re.findall(r"^\| `(tkserver_\w+)` \| (\w+) \|([^|]*)\|", METRICS, re.MULTILINE)
    types = {name: kind for name, kind in families(used.text).items() if name.startswith("tkserver_")}
    assert {name: kind for name, kind, _ in rows} == types
    for name, kind, labels in rows:
        sample = f"{name}_count" if kind == "histogram" else name
        named = set(re.findall(r"`(\w+)`", labels))
        for found, has in used.samples:
            if found == sample:
                assert {label for label, _ in has} == named, name


def test_alerts_described() -> None:
    """The document says of each alert what to do."""
    assert re.findall(r"^\| `(Tkserver\w+)` \|", MONITORING, re.MULTILINE) == [rule["alert"] for rule in RULES]


# --- the dashboard


def test_dashboard_answers() -> None:
    """The five questions, from top to bottom, each with panels below it."""
    rows = [panel for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert [row["title"] for row in rows][:5] == QUESTIONS
    tops = [row["gridPos"]["y"] for row in rows]
    assert tops == sorted(tops)
    for top, bottom in zip(tops, [*tops[1:], 1000], strict=True):
        assert any(top < panel["gridPos"]["y"] < bottom for panel in panels())


def test_dashboard_layout() -> None:
    """Each panel has an id and a place of its own, a data source that can be chosen, and asks for chosen servers."""
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells)
        taken |= cells
    assert [one["name"] for one in DASHBOARD["templating"]["list"]] == ["datasource", "job", "instance"]
    for panel in panels():
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            for selector in selectors(re.sub(r"\$__\w+", "5m", target["expr"])):
                chosen = {matcher.name: matcher.value for matcher in selector.matchers.matchers}
                assert (chosen["job"], chosen["instance"]) == ("$job", "$instance"), panel["title"]


# --- with Prometheus' own tool


def promtool(*arguments: str | Path, text: str | None = None) -> str:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], input=text, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_promtool
def test_promtool(used: Scrape) -> None:
    """Metrics keep to the conventions; rules and example are as they should be."""
    assert promtool("check", "metrics", text=used.text) == ""
    promtool("check", "rules", "--lint=all", "--lint-fatal", ALERTS)
    promtool("check", "config", DEPLOY / "prometheus.yml")


HEALTHY = {
    'up{job="tkserver"}': "1x40",
    "tkserver_database_up": "1x40",
    "tkserver_redis_up": "1x40",
    "tkserver_last_commit_age_seconds": "0x40",
    "tkserver_events_received_total": "0+600x40",
    'tkserver_events_total{outcome="stored"}': "0+590x40",
    'tkserver_events_total{outcome="rejected", code="invalid_schema"}': "0+10x40",
    'tkserver_events_total{outcome="refused", code="storage_unavailable"}': "0x40",
    "tkserver_queue_events": "0x40",
    "tkserver_queue_max_events": "100000x40",
    "tkserver_queue_bytes": "0x40",
    "tkserver_queue_max_bytes": "67108864x40",
    'tkserver_http_requests_total{route="/v1/ingest/{org_id}/{app_id}"}': "0+600x40",
    'tkserver_http_errors_total{code="internal_error"}': "0x40",
    'tkserver_http_errors_total{code="storage_unavailable"}': "0x40",
    'tkserver_auth_failures_total{code="invalid_token"}': "0+30x40",
    'tkserver_commits_total{outcome="unknown"}': "0x40",
    'tkserver_commit_duration_seconds_bucket{le="0.5"}': "0+100x40",
    'tkserver_commit_duration_seconds_bucket{le="10"}': "0+100x40",
    'tkserver_commit_duration_seconds_bucket{le="+Inf"}': "0+100x40",
    'tkserver_reactor_lag_seconds_bucket{le="0.025"}': "0+240x40",
    'tkserver_reactor_lag_seconds_bucket{le="2.5"}': "0+240x40",
    'tkserver_reactor_lag_seconds_bucket{le="+Inf"}': "0+240x40",
    'tkserver_database_connections{state="down"}': "0x40",
    'process_open_fds{job="tkserver"}': "100x40",
    'process_max_fds{job="tkserver"}': "1000x40",
    "tkserver_http_connections": "10x40",
    "tkserver_http_max_connections": "4096x40",
}
"""What a server says when all is well, once a minute."""

TROUBLE = {
    "TkserverDown": {'up{job="tkserver"}': "0x40"},
    "TkserverDatabaseAway": {"tkserver_database_up": "0x40"},
    "TkserverNotCommitting": {
        "tkserver_last_commit_age_seconds": "0+60x40",
        "tkserver_queue_events": "5x40",
        "tkserver_events_received_total": "5+600x40",
    },
    "TkserverBooksDoNotBalance": {"tkserver_events_received_total": "7+600x40"},
    "TkserverInternalErrors": {'tkserver_http_errors_total{code="internal_error"}': "0x32 1x8"},
    "TkserverQueueFilling": {"tkserver_queue_bytes": "40000000x40"},
    "TkserverRefusingForNow": {'tkserver_http_errors_total{code="storage_unavailable"}': "0+9x40"},
    "TkserverSlowCommits": {'tkserver_commit_duration_seconds_bucket{le="0.5"}': "0+10x40"},
    "TkserverCommitsOfUnknownEnd": {'tkserver_commits_total{outcome="unknown"}': "0x32 1x8"},
    "TkserverDatabaseConnectionsDown": {'tkserver_database_connections{state="down"}': "3x40"},
    "TkserverAuthFailures": {'tkserver_auth_failures_total{code="invalid_token"}': "0+200x40"},
    "TkserverEventsRejected": {
        'tkserver_events_total{outcome="stored"}': "0+500x40",
        'tkserver_events_total{outcome="rejected", code="invalid_schema"}': "0+100x40",
    },
    "TkserverReactorLag": {'tkserver_reactor_lag_seconds_bucket{le="0.025"}': "0+20x40"},
    "TkserverOpenFilesNearlyUsedUp": {'process_open_fds{job="tkserver"}': "900x40"},
    "TkserverConnectionsNearlyUsedUp": {"tkserver_http_connections": "4000x40"},
    "TkserverRedisAway": {"tkserver_redis_up": "0x40"},
}
"""What is different then, by the alert that it is for."""

LABELS = {
    "TkserverDown": {"job": "tkserver"},
    "TkserverRefusingForNow": {"code": "storage_unavailable"},
    "TkserverDatabaseConnectionsDown": {"state": "down"},
    "TkserverOpenFilesNearlyUsedUp": {"job": "tkserver"},
}
"""Of alerts, where they have any beside those that every metric of a server has."""


@needs_promtool
def test_each_alert(directory: Path) -> None:
    """When all is well there is none; in each kind of trouble there is the one that is for it, and no other."""
    assert list(TROUBLE) == [rule["alert"] for rule in RULES]
    check_alerts(directory, [alert_test((), {}), *(alert_test((name,), said) for name, said in TROUBLE.items())])


@needs_promtool
def test_silent_database(directory: Path) -> None:
    """A database that hangs is a reason to wake somebody also where no request gets as far as to have events."""
    said = {
        "tkserver_last_commit_age_seconds": "0+60x40",
        "tkserver_events_received_total": "600x40",
        'tkserver_events_total{outcome="stored"}': "590x40",
        'tkserver_events_total{outcome="rejected", code="invalid_schema"}': "10x40",
        'tkserver_http_errors_total{code="storage_unavailable"}': "0+9x40",
    }
    check_alerts(directory, [alert_test(("TkserverNotCommitting", "TkserverRefusingForNow"), said)])


def check_alerts(directory: Path, tests: list[dict[str, Any]]) -> None:
    (directory / "rules.yml").write_text(json.dumps({"groups": [{"name": "all", "rules": bare_rules()}]}))
    given = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests}
    (directory / "tests.yml").write_text(json.dumps(given))
    assert "SUCCESS" in promtool("test", "rules", directory / "tests.yml")


def bare_rules() -> list[dict[str, Any]]:
    """The rules without their words, which the tests would have to repeat."""
    return [{key: rule[key] for key in ("alert", "expr", "for") if key in rule} for rule in RULES]


def alert_test(firing: Collection[str], different: dict[str, str]) -> dict[str, Any]:
    assert different.keys() <= HEALTHY.keys()
    series = [{"series": name, "values": values} for name, values in {**HEALTHY, **different}.items()]
    expected: list[dict[str, Any]] = [
        {"eval_time": "35m", "alertname": name, "exp_alerts": []} for name in TROUBLE if name not in firing
    ]
    for name in firing:
        alert = {"exp_labels": LABELS.get(name, {})}
        expected.append({"eval_time": "35m", "alertname": name, "exp_alerts": [alert]})
    return {"interval": "1m", "input_series": series, "alert_rule_test": expected}
