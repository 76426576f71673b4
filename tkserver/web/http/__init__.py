"""HTTP on top of twisted.web. Knows nothing about ingestion."""
