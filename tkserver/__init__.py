"""tkserver: the self-hosted ingestion server for the telemetry-kit SDKs."""

__version__ = "0.1.0"
