"""The metrics of a server, as Prometheus reads them."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from tests.support.client import Client

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Scrape:
    """The metrics at one time.

    :ivar text: in the text format of Prometheus.
    """

    text: str

    @property
    def samples(self) -> dict[tuple[str, Labels], float]:
        """All values by name and labels."""
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
        }

    @property
    def names(self) -> set[str]:
        """The names of all samples and metric families. A family may have no samples."""
        families = list(text_string_to_metric_families(self.text))
        samples = {sample.name for family in families for sample in family.samples}
        return samples | {family.name for family in families}

    def value(self, name: str, **labels: str) -> float:
        """Return the value of a sample, or 0 if there is no such sample."""
        return self.samples.get((name, frozenset(labels.items())), 0.0)

    def sum(self, name: str, **labels: str) -> float:
        """Return the sum of all samples that have these labels, and possibly others."""
        expected = set(labels.items())
        return sum(
            value
            for (sample_name, sample_labels), value in self.samples.items()
            if sample_name == name and expected <= sample_labels
        )

    @property
    def received(self) -> float:
        """The number of received events."""
        return self.value("tkserver_events_received_total")

    @property
    def waiting(self) -> float:
        """The number of events in the queue."""
        return self.value("tkserver_queue_events")

    def events(self, outcome: str, code: str = "") -> float:
        """Return the number of events with an outcome."""
        return self.value("tkserver_events_total", outcome=outcome, code=code)

    @property
    def balanced(self) -> bool:
        """Whether every received event has an outcome or is in the queue."""
        return self.received == self.sum("tkserver_events_total") + self.waiting


async def scrape(port: int) -> Scrape:
    """Read the metrics from an admin port."""
    reply = await Client(f"http://127.0.0.1:{port}").request("GET", "/metrics")
    assert reply.status == 200
    return Scrape(reply.body.decode())
