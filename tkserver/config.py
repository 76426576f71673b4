"""Settings: environment variables that begin with ``TK__``, or a ``.env`` file, or the command line."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import psycopg2
from dotenv import dotenv_values
from psycopg2.extensions import parse_dsn
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

PREFIX = "TK__"
ENV_FILE = ".env"


class InvalidSettings(Exception):
    """A setting that cannot be used. The text is one line that names it, and holds no value that may be secret."""


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


OTHER_FILES = 256
"""Open files that are no connections of clients: the database's, logs, programs."""


class Server(_Group):
    """Where and how it listens. Times in seconds."""

    host: Annotated[str, Field(min_length=1, description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="Port to listen on; 0 takes a free one.")] = 3000
    endpoint: Annotated[
        str | None,
        Field(
            description="Twisted endpoint to listen on, such as ssl:… or unix:…, instead of host and port.",
        ),
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warn", "error", "critical"],
        Field(description="The least severe messages that are logged."),
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"], Field(description="How lines of the log look: text for people, json for programs.")
    ] = "text"
    log_sample: Annotated[
        float, Field(ge=0, le=1, description="The share of the requests that succeed which is logged, from 0 to 1.")
    ] = 1
    cors_origins: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(description="Web origins that may send events, separated by commas; * for any."),
    ] = ("*",)
    trusted_proxies: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="Proxies whose X-Forwarded-For is believed: addresses or networks, separated by commas;"
            " unix for those on a Unix socket."
        ),
    ] = ()
    max_connections: Annotated[int, Field(ge=1, description="Connections beyond this are closed at once.")] = 4096
    header_timeout: Annotated[float, Field(gt=0, description="Seconds for the headers of a request to arrive.")] = 10
    body_timeout: Annotated[float, Field(gt=0, description="Seconds for the body of a request to arrive.")] = 60
    idle_timeout: Annotated[
        float, Field(gt=0, description="Seconds that a connection may stay open between requests.")
    ] = 75
    shutdown_timeout: Annotated[
        float, Field(ge=0, description="Seconds for requests in flight to finish at a stop.")
    ] = 10

    @field_validator("cors_origins", "trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("endpoint", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            try:
                if name != "unix":
                    ip_network(name)
            except ValueError as error:
                raise ValueError(f"neither an address, nor a network, nor unix: {error}") from None
        return value

    @property
    def open_files(self) -> int:
        """How many the process may need at once."""
        return self.max_connections + OTHER_FILES

    def connections_within(self, open_files: int) -> int:
        """How many connections there may be, so that some of these open files are left for all else."""
        return max(1, min(self.max_connections, open_files - min(OTHER_FILES, open_files // 2)))


class Admin(_Group):
    """The private listener: what strangers must not see."""

    host: Annotated[
        str, Field(min_length=1, description="Address to listen on for what is private, such as /metrics.")
    ] = "127.0.0.1"
    port: Annotated[
        int | None, Field(ge=0, le=65535, description="Port for it; 0 takes a free one, an empty one is none.")
    ] = 3001

    @field_validator("port", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value


class Database(_Group):
    """Where the events are stored."""

    url: Annotated[
        SecretStr | None, Field(description="PostgreSQL URL; without one the embedded PostgreSQL is used.")
    ] = None
    data_dir: Annotated[Path | None, Field(description="Where the embedded PostgreSQL keeps its data.")] = None
    max_connections: Annotated[
        int, Field(ge=1, description="Connections to the database that this server keeps open.")
    ] = 10

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _is_dsn(value.get_secret_value()):
            raise ValueError(
                "not a PostgreSQL URL such as postgresql://user:password@host:5432/database; @ in a password is %40"
            )
        return value

    @field_validator("data_dir")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        try:
            return value and value.expanduser()
        except RuntimeError:
            raise ValueError("there is no such user's home directory") from None


_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


def _is_dsn(text: str) -> bool:
    """Whether libpq would try to connect; what it would refuse for ever is better said at the start."""
    try:
        parts = parse_dsn(text)
    except psycopg2.ProgrammingError:
        return False
    ports = parts.get("port", "").split(",")
    return (
        bool(parts)
        and "@" not in parts.get("host", "")[1:]  # the end of a password, which errors would name as the host
        and all(port.isdigit() or not port for port in ports)
        and parts.get("sslmode", "prefer") in _SSL_MODES
    )


class Ingest(_Group):
    """What is taken in."""

    max_body_bytes: Annotated[int, Field(ge=1, description="Bytes of a body, before and after decompression.")] = (
        5_242_880
    )
    max_body_memory: Annotated[
        int, Field(ge=1, description="Bytes of all bodies that are being received or handled; others wait.")
    ] = 67_108_864
    max_queue_events: Annotated[
        int, Field(ge=1, description="Events that may wait to be committed; beyond it requests are answered 503.")
    ] = 100_000
    max_queue_bytes: Annotated[
        int, Field(ge=1, description="Bytes of events that may wait to be committed; likewise.")
    ] = 67_108_864
    commit_timeout: Annotated[
        float, Field(gt=0, description="Seconds for a request to be committed; then it is answered 503.")
    ] = 10
    timestamp_tolerance: Annotated[
        int, Field(ge=0, description="Seconds by which a request's timestamp may be off.")
    ] = 600


class Retention(_Group):
    """For how long events are kept."""

    days: Annotated[
        int | None,
        Field(
            ge=1, le=36_500, description="Days for which events are kept, where their application has no other number."
        ),
    ] = None


class RateLimit(_Group):
    """How often an application may send, and an address fail to authenticate."""

    free_rpm: Annotated[
        int | None, Field(ge=1, description="Requests a minute of an application whose token is of the tier free.")
    ] = None
    pro_rpm: Annotated[int | None, Field(ge=1, description="Likewise of the tier pro.")] = None
    business_rpm: Annotated[int | None, Field(ge=1, description="Likewise of the tier business.")] = None
    enterprise_rpm: Annotated[int | None, Field(ge=1, description="Likewise of the tier enterprise.")] = None
    auth_failures_per_minute: Annotated[
        int,
        Field(
            ge=0,
            description="Requests a minute of one address that may fail to authenticate; then all of its requests are"
            " answered 429. 0 for any number.",
        ),
    ] = 60
    auth_failures_burst: Annotated[int, Field(ge=1, description="How many of them may come at once.")] = 100

    def per_minute(self) -> dict[str, int]:
        """The limits by tier, of those tiers that have one."""
        limits = {
            "free": self.free_rpm,
            "pro": self.pro_rpm,
            "business": self.business_rpm,
            "enterprise": self.enterprise_rpm,
        }
        return {tier: limit for tier, limit in limits.items() if limit is not None}


class Redis(_Group):
    """Where the limits of applications are kept, so that they hold for all servers together."""

    url: Annotated[
        SecretStr | None,
        Field(description="Redis or Valkey URL; without one the limits of applications hold for each server."),
    ] = None

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _is_redis_url(value.get_secret_value()):
            raise ValueError("not a Redis URL such as redis://user:password@host:6379/0, or rediss:// with TLS")
        return value


def _is_redis_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    database = parts.path.strip("/")
    return (
        parts.scheme in ("redis", "rediss")
        and bool(parts.hostname)
        and port != 0
        and not (parts.query or parts.fragment)
        and (not database or (database.isascii() and database.isdigit()))
    )


class Settings(BaseSettings):
    """All settings. The environment wins over the file, and what is passed to :func:`load` over both."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="ignore", frozen=True)

    server: Server = Server()
    admin: Admin = Admin()
    database: Database = Database()
    ingest: Ingest = Ingest()
    retention: Retention = Retention()
    rate_limit: RateLimit = RateLimit()
    redis: Redis = Redis()


def load(overrides: Mapping[str, Any]) -> Settings:
    """Read the settings.

    :param overrides: values by the name of their variable, such as ``TK__SERVER__PORT``.
    :raise InvalidSettings: when one of them does not parse, or is none.
    """
    try:
        _check_names([*os.environ, *dotenv_values(ENV_FILE)])
        return Settings(_env_file=ENV_FILE, **_nested(overrides))  # type: ignore[arg-type, call-arg]
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        message = str(first["msg"]).removeprefix("Value error, ")
        raise InvalidSettings(f"{variable(*map(str, first['loc'][:2]))}: {message}") from None
    except OSError as error:
        raise InvalidSettings(f"{ENV_FILE}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidSettings(f"{ENV_FILE}: cannot be read as UTF-8") from None
    except SettingsError:
        raise InvalidSettings(f"{PREFIX}…: a group of settings has no value of its own") from None


def variable(*path: str) -> str:
    """The name of the variable of a setting, such as ``("server", "port")``."""
    return PREFIX + "__".join(path).upper()


def variables() -> Iterator[tuple[str, Any, str]]:
    """Every variable, with its default and what it is for."""
    for group_name, group in Settings.model_fields.items():
        for name, field in type(group.default).model_fields.items():
            yield variable(group_name, name), field.default, field.description or ""


def _check_names(names: list[str]) -> None:
    known = [name for name, _, _ in variables()]
    for name in names:
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            similar = difflib.get_close_matches(name.upper(), known, n=1)
            hint = f"; did you mean {similar[0]}?" if similar else ""
            raise InvalidSettings(f"{name}: there is no such setting{hint}")


def _nested(overrides: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    nested: dict[str, dict[str, Any]] = {}
    for name, value in overrides.items():
        group, _, field = name.removeprefix(PREFIX).lower().partition("__")
        nested.setdefault(group, {})[field] = value
    return nested
