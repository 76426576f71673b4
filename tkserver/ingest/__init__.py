"""What happens to one request, from its headers to its answer. Knows no sockets and no SQL."""
