"""What a server says at its private port."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from tests.support.client import Client

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Scrape:
    """All samples of one look, by their names and labels."""

    text: str

    @property
    def samples(self) -> dict[tuple[str, Labels], float]:
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
        }

    @property
    def names(self) -> set[str]:
        """Of samples, and of families that have none yet."""
        families = list(text_string_to_metric_families(self.text))
        return {sample.name for family in families for sample in family.samples} | {one.name for one in families}

    def value(self, name: str, **labels: str) -> float:
        """Of one sample; 0 where there is none."""
        return self.samples.get((name, frozenset(labels.items())), 0.0)

    def sum(self, name: str, **labels: str) -> float:
        """Of all samples with these labels, and any others."""
        wanted = set(labels.items())
        return sum(value for (found, has), value in self.samples.items() if found == name and wanted <= has)

    @property
    def received(self) -> float:
        return self.value("tkserver_events_received_total")

    @property
    def waiting(self) -> float:
        return self.value("tkserver_queue_events")

    def events(self, outcome: str, code: str = "") -> float:
        return self.value("tkserver_events_total", outcome=outcome, code=code)

    @property
    def balanced(self) -> bool:
        """Whether each event that was received is accounted for."""
        return self.received == self.sum("tkserver_events_total") + self.waiting


async def scrape(port: int) -> Scrape:
    """Look at the server whose private port this is."""
    reply = await Client(f"http://127.0.0.1:{port}").request("GET", "/metrics")
    assert reply.status == 200
    return Scrape(reply.body.decode())
