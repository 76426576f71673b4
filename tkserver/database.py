"""Which database the settings mean."""

from __future__ import annotations

from tkserver.config import Settings
from tkserver.storage.embedded import EmbeddedPostgres, default_data_dir


def embedded_by(settings: Settings) -> EmbeddedPostgres | None:
    """The embedded PostgreSQL, not started; ``None`` where a URL names another database.

    :raise EmbeddedError: when it is not installed.
    """
    if settings.database.url is not None:
        return None
    return EmbeddedPostgres(settings.database.data_dir or default_data_dir())


def dsn_of(settings: Settings, embedded: EmbeddedPostgres | None) -> str:
    """A libpq URL or connection string, which may hold a password."""
    if embedded is not None:
        return embedded.dsn
    assert settings.database.url is not None
    return settings.database.url.get_secret_value()
