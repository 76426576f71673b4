"""The server process: supervisor, worker, and how they are wired together."""
