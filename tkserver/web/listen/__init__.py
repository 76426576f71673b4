"""Listening sockets, from endpoint strings to TLS certificates."""
