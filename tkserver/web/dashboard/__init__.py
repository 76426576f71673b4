"""The dashboard: pages that show the statistics, rendered on the server."""
