"""Settings from the environment and from the file ``.env``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tkserver.config import InvalidSettings, Settings, load, variables

URL = "postgresql://me@host/db"


@pytest.fixture(autouse=True)
def empty_directory(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without a file ``.env``."""
    monkeypatch.chdir(directory)
    return directory


@pytest.mark.parametrize("name", [name for name, _, _ in variables()])
@pytest.mark.parametrize("value", ["", " ", "\n"])
def test_empty_values(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """An empty value of any setting means the same as no value."""
    monkeypatch.setenv(name, value)
    assert load({}) == Settings()


def test_empty_values_in_file(empty_directory: Path) -> None:
    """The same applies to the file."""
    (empty_directory / ".env").write_text("".join(f"{name}=\n" for name, _, _ in variables()))
    assert load({}) == Settings()


@pytest.mark.parametrize("end", [" ", "\n", "\r\n", "\t"])
def test_white_space(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """White space around values is ignored: in texts, secrets, numbers, booleans and lists."""
    for name, value in {
        "TK__DATABASE__URL": URL,
        "TK__RETENTION__DAYS": "7",
        "TK__INSIGHT__ENABLED": "false",
        "TK__SERVER__TRUSTED_PROXIES": "10.0.0.1, 10.0.0.2",
        "TK__ADMIN__PORT": "none",
    }.items():
        monkeypatch.setenv(name, f" {value}{end}")
    settings = load({})
    assert settings.database.url is not None
    assert settings.database.url.get_secret_value() == URL
    assert (settings.retention.days, settings.insight.enabled, settings.admin.port) == (7, False, None)
    assert settings.server.trusted_proxies == ("10.0.0.1", "10.0.0.2")


def test_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings with a default can have no value: the admin port, and lists."""
    monkeypatch.setenv("TK__ADMIN__PORT", "None")
    monkeypatch.setenv("TK__SERVER__CORS_ORIGINS", "none")
    assert (load({}).admin.port, load({}).server.cors_origins) == (None, ())


def test_byte_order_mark(empty_directory: Path) -> None:
    """The file can begin with a byte order mark, as editors on Windows write it."""
    (empty_directory / ".env").write_text("TK__SERVER__PORT=77\n", "utf-8-sig")
    assert load({}).server.port == 77


def test_other_values_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """White space within a value is not ignored."""
    monkeypatch.setenv("TK__RETENTION__DAYS", "7 7")
    with pytest.raises(InvalidSettings, match="TK__RETENTION__DAYS"):
        load({})
