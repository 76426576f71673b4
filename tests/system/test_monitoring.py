"""Monitoring: the document, the dashboard and the alerts agree with the metrics of a server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Collection, Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import pytest_twisted
import yaml

from tests.support.client import App
from tests.support.database import DatabaseServer
from tests.support.events import make_event
from tests.support.scrape import Scrape, scrape
from tests.support.server import client_of, start_server
from tests.support.source import ROOT

DEPLOY = ROOT / "deploy"
MONITORING = (ROOT / "docs" / "monitoring.md").read_text()
METRICS = (ROOT / "docs" / "metrics.md").read_text()
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
ALERTS = DEPLOY / "prometheus-alerts.yml"
RULES: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]

DASHBOARD_ROWS = [
    "Is it taking events?",
    "How fast?",
    "What is refused, and why?",
    "Is anything piling up?",
    "Is anything lost?",
]

PROMETHEUS_SERIES = {"up"}
"""Series that Prometheus adds itself."""

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="needs promtool")


@pytest_twisted.async_yield_fixture(scope="module")
async def metrics(database_server: DatabaseServer) -> AsyncIterator[Scrape]:
    """The metrics of a server that has received requests."""
    with database_server.migrated() as database:
        server = await start_server(database, TK__INSIGHT__ENABLED=True)
        client, app = client_of(server), App().install(database)
        assert (await client.send(app, [make_event(), make_event(user_id="x")])).status == 207
        assert (await client.send(app, [make_event()], changes={"X-Signature": "0"})).status == 401
        yield await scrape(server.admin_port)
        await server.stopService()


def panels() -> list[dict[str, Any]]:
    """Return the panels of the dashboard without the rows."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    """Return the PromQL expressions of the dashboard and of the alerts."""
    for panel in panels():
        for target in panel["targets"]:
            yield re.sub(r"\$__\w+", "5m", target["expr"])
    for rule in RULES:
        yield rule["expr"]


def selectors(expression: str) -> list[Any]:
    """Return the vector selectors in a PromQL expression."""
    result: list[Any] = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            result.append(node)
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    assert result, expression
    return result


def test_expressions_select_existing_metrics(metrics: Scrape) -> None:
    """Every metric in the dashboard and in the alerts exists, with its labels and their values."""
    for expression in expressions():
        for selector in selectors(expression):
            assert selector.name in metrics.names | PROMETHEUS_SERIES, expression
            for matcher in selector.matchers.matchers:
                if matcher.name not in ("job", "instance"):
                    check_label(metrics, selector.name, matcher)


def check_label(metrics: Scrape, name: str, matcher: Any) -> None:
    """Check that each alternative of a label matcher matches a value of a metric."""
    existing = {dict(labels).get(matcher.name) for sample, labels in metrics.samples if sample == name}
    for pattern in matcher.value.split("|"):
        matches = [value for value in existing if value is not None and re.fullmatch(pattern, value)]
        assert matches, f"no {matcher.name} of {name} matches {pattern}; the values are {existing}"


def families(text: str) -> dict[str, str]:
    """Return the types of all metrics by name."""
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))


def test_metrics_are_documented(metrics: Scrape) -> None:
    """The table of the document contains exactly the metrics of a server, with their types and labels."""
    rows = re.findall(r"^\| `(tkserver_\w+)` \| (\w+) \|([^|]*)\|", METRICS, re.MULTILINE)
    types = {name: type_name for name, type_name in families(metrics.text).items() if name.startswith("tkserver_")}
    assert {name: type_name for name, type_name, _ in rows} == types
    for name, type_name, label_column in rows:
        sample_name = f"{name}_count" if type_name == "histogram" else name
        documented = set(re.findall(r"`(\w+)`", label_column))
        for sample, labels in metrics.samples:
            if sample == sample_name:
                assert {label for label, _ in labels} == documented, name


def test_alerts_are_documented() -> None:
    """The document describes all alerts, in their order."""
    assert re.findall(r"^\| `(Tkserver\w+)` \|", MONITORING, re.MULTILINE) == [rule["alert"] for rule in RULES]


# --- the dashboard


def test_dashboard_rows() -> None:
    """The rows of the dashboard are in the expected order, and each contains panels."""
    rows = [panel for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert [row["title"] for row in rows][:5] == DASHBOARD_ROWS
    tops = [row["gridPos"]["y"] for row in rows]
    assert tops == sorted(tops)
    for top, bottom in zip(tops, [*tops[1:], 1000], strict=True):
        assert any(top < panel["gridPos"]["y"] < bottom for panel in panels())


def test_dashboard_layout() -> None:
    """Panels have unique ids, do not overlap, and use the selected data source, job and instance."""
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    occupied: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        position = panel["gridPos"]
        cells = {(position["x"] + x, position["y"] + y) for x in range(position["w"]) for y in range(position["h"])}
        assert not cells & occupied, panel["title"]
        assert all(x < 24 for x, _ in cells)
        occupied |= cells
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "job", "instance"]
    for panel in panels():
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            for selector in selectors(re.sub(r"\$__\w+", "5m", target["expr"])):
                matchers = {matcher.name: matcher.value for matcher in selector.matchers.matchers}
                assert (matchers["job"], matchers["instance"]) == ("$job", "$instance"), panel["title"]


# --- promtool


def promtool(*arguments: str | Path, text: str | None = None) -> str:
    """Run promtool, and return its output."""
    assert PROMTOOL is not None
    completed = subprocess.run([PROMTOOL, *arguments], input=text, capture_output=True, text=True, timeout=60, cwd=ROOT)
    output = completed.stdout + completed.stderr
    assert completed.returncode == 0, output
    return output


@needs_promtool
def test_promtool_checks(metrics: Scrape) -> None:
    """The metrics follow the conventions, and promtool accepts the alerts and the example configuration."""
    assert promtool("check", "metrics", text=metrics.text) == ""
    promtool("check", "rules", "--lint=all", "--lint-fatal", ALERTS)
    promtool("check", "config", DEPLOY / "prometheus.yml")


HEALTHY = {
    'up{job="tkserver"}': "1x40",
    "tkserver_database_up": "1x40",
    "tkserver_redis_up": "1x40",
    "tkserver_last_commit_age_seconds": "0x40",
    "tkserver_events_received_total": "0+600x40",
    'tkserver_events_total{outcome="stored"}': "0+590x40",
    'tkserver_events_total{outcome="quarantined", code="invalid_schema"}': "0+10x40",
    "tkserver_quarantine_dropped_events_total": "0x40",
    'tkserver_events_total{outcome="refused", code="storage_unavailable"}': "0x40",
    "tkserver_aggregation_lag_seconds": "5x40",
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
"""The metrics of a server without problems, once a minute."""

PROBLEMS = {
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
    "TkserverQuarantineGrowing": {
        'tkserver_events_total{outcome="stored"}': "0+500x40",
        'tkserver_events_total{outcome="quarantined", code="invalid_schema"}': "0+100x40",
    },
    "TkserverQuarantineFull": {"tkserver_quarantine_dropped_events_total": "0x32 1x8"},
    "TkserverStatisticsBehind": {"tkserver_aggregation_lag_seconds": "0+60x40"},
    "TkserverReactorLag": {'tkserver_reactor_lag_seconds_bucket{le="0.025"}': "0+20x40"},
    "TkserverOpenFilesNearlyUsedUp": {'process_open_fds{job="tkserver"}': "900x40"},
    "TkserverConnectionsNearlyUsedUp": {"tkserver_http_connections": "4000x40"},
    "TkserverRedisAway": {"tkserver_redis_up": "0x40"},
}
"""The metrics that differ if there is a problem, by the name of the alert."""

LABELS = {
    "TkserverDown": {"job": "tkserver"},
    "TkserverRefusingForNow": {"code": "storage_unavailable"},
    "TkserverDatabaseConnectionsDown": {"state": "down"},
    "TkserverOpenFilesNearlyUsedUp": {"job": "tkserver"},
}
"""The additional labels of alerts."""


@needs_promtool
def test_each_alert(directory: Path) -> None:
    """Without a problem no alert fires, and with each problem only its alert."""
    assert list(PROBLEMS) == [rule["alert"] for rule in RULES]
    check_alerts(directory, [alert_test((), {}), *(alert_test((name,), values) for name, values in PROBLEMS.items())])


@needs_promtool
def test_alerts_if_database_hangs(directory: Path) -> None:
    """If the database hangs, an alert fires even if no request is received completely."""
    values = {
        "tkserver_last_commit_age_seconds": "0+60x40",
        "tkserver_events_received_total": "600x40",
        'tkserver_events_total{outcome="stored"}': "590x40",
        'tkserver_events_total{outcome="quarantined", code="invalid_schema"}': "10x40",
        'tkserver_http_errors_total{code="storage_unavailable"}': "0+9x40",
    }
    check_alerts(directory, [alert_test(("TkserverNotCommitting", "TkserverRefusingForNow"), values)])


def check_alerts(directory: Path, tests: list[dict[str, Any]]) -> None:
    """Run tests of the alerts with promtool."""
    (directory / "rules.yml").write_text(
        json.dumps({"groups": [{"name": "all", "rules": rules_without_annotations()}]})
    )
    content = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests}
    (directory / "tests.yml").write_text(json.dumps(content))
    assert "SUCCESS" in promtool("test", "rules", directory / "tests.yml")


def rules_without_annotations() -> list[dict[str, Any]]:
    """Return the rules without their annotations, which the tests would have to repeat."""
    return [{key: rule[key] for key in ("alert", "expr", "for") if key in rule} for rule in RULES]


def alert_test(firing: Collection[str], changes: dict[str, str]) -> dict[str, Any]:
    """Return a test for promtool.

    :param firing: the alerts that must fire.
    :param changes: the metrics that differ from those of a server without problems.
    """
    assert changes.keys() <= HEALTHY.keys()
    series = [{"series": name, "values": values} for name, values in {**HEALTHY, **changes}.items()]
    expected: list[dict[str, Any]] = [
        {"eval_time": "35m", "alertname": name, "exp_alerts": []} for name in PROBLEMS if name not in firing
    ]
    for name in firing:
        alert = {"exp_labels": LABELS.get(name, {})}
        expected.append({"eval_time": "35m", "alertname": name, "exp_alerts": [alert]})
    return {"interval": "1m", "input_series": series, "alert_rule_test": expected}
