"""The embedded PostgreSQL, which needs no installation."""
