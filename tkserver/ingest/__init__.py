"""Ingestion of a request, from its headers to the outcome of its events. Contains no sockets and no SQL."""
