"""``deploy/kubernetes.yaml``: the schemas of Kubernetes accept it, and its parts fit together and to the server."""

from __future__ import annotations

from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from tests.support.source import ROOT
from tkserver.config import Settings

MANIFESTS: dict[str, Any] = {
    document["kind"]: document for document in yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text())
}
POD = MANIFESTS["Deployment"]["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]

OLDEST_VERSION, NEWEST_VERSION = "1.29", kubernetes_validate.latest_version()


@pytest.mark.parametrize("version", [OLDEST_VERSION, NEWEST_VERSION])
@pytest.mark.parametrize("kind", ["Deployment", "Service", "PodDisruptionBudget"])
def test_schema(kind: str, version: str) -> None:
    """Each manifest is valid, and has no unknown keys, in an old and a new version of Kubernetes."""
    kubernetes_validate.validate(MANIFESTS[kind], version, strict=True)


def test_schema_is_strict() -> None:
    """The check above finds misspelled keys."""
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**MANIFESTS["Service"], "specs": {}}, NEWEST_VERSION, strict=True)


def test_selectors() -> None:
    """All parts select the pods, or the Service, by labels that these have."""
    labels = POD["metadata"]["labels"]
    assert MANIFESTS["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert MANIFESTS["Service"]["spec"]["selector"].items() <= labels.items()
    assert MANIFESTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    service = MANIFESTS["Service"]["metadata"]["labels"]
    assert MANIFESTS["ServiceMonitor"]["spec"]["selector"]["matchLabels"].items() <= service.items()


def test_ports() -> None:
    """The ports are the defaults of the server, the Service forwards to them, and Prometheus reads the admin port."""
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == {"http": Settings().server.port, "metrics": Settings().admin.port}
    forwarded = {port["name"]: port["targetPort"] for port in MANIFESTS["Service"]["spec"]["ports"]}
    assert forwarded == {"http": "http", "metrics": "metrics"}
    (endpoint,) = MANIFESTS["ServiceMonitor"]["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("metrics", "/metrics")


def test_probes() -> None:
    """The database decides whether a server is ready, and not whether it is alive."""
    paths = {name: CONTAINER[f"{name}Probe"]["httpGet"]["path"] for name in ("liveness", "readiness")}
    assert paths == {"liveness": "/health", "readiness": "/health/ready"}
    pause = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    assert POD["spec"]["terminationGracePeriodSeconds"] > pause + Settings().server.shutdown_timeout


def test_privileges() -> None:
    """The server runs as the user of the image, cannot gain privileges, and cannot change its files."""
    user = POD["spec"]["securityContext"]
    assert (user["runAsNonRoot"], user["runAsUser"]) == (True, 10001)
    assert "USER 10001" in (ROOT / "deploy" / "Dockerfile").read_text()
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
