"""The settings, from environment variables that begin with ``TK__``, a ``.env`` file, and the command line."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import psycopg2
from dotenv import dotenv_values
from psycopg2.extensions import parse_dsn
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

PREFIX = "TK__"
ENV_FILE = ".env"


class InvalidSettings(Exception):
    """A setting is invalid. The text is one line that names it and contains no password."""


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


NONE = "none"
"""The value of a setting that has a default, and shall have no value."""


def _split_list(value: object) -> object:
    """Return the parts of a text that are separated by commas."""
    if not isinstance(value, str):
        return value
    parts = tuple(part.strip() for part in value.split(",") if part.strip())
    return () if tuple(map(str.lower, parts)) == (NONE,) else parts


OTHER_FILES = 256
"""Open files other than client connections: database connections, logs, subprocesses."""


class Server(_Group):
    """The public port, its connections, and the log."""

    host: Annotated[
        str, Field(min_length=1, description="The IP address to listen on. 0.0.0.0 means all IPv4 addresses.")
    ] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="The port to listen on. 0 selects a free port.")] = 3000
    endpoint: Annotated[
        str | None,
        Field(description="A Twisted endpoint to listen on, such as ssl:… or unix:…. It replaces host and port."),
    ] = None
    user: Annotated[
        str,
        Field(
            min_length=1,
            description="The user that the server becomes after it has opened its ports, if it is started as root. It"
            " also runs the embedded database.",
        ),
    ] = "tkserver"
    log_level: Annotated[
        Literal["debug", "info", "warn", "error", "critical"],
        Field(description="The lowest level that is logged: debug, info, warn, error or critical."),
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"], Field(description="The format of log lines: text for people, json for programs.")
    ] = "text"
    log_sample: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="The fraction of successful requests that are logged, from 0 to 1. It does not affect other"
            " requests.",
        ),
    ] = 1
    cors_origins: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="The web origins that may send events, such as https://example.com, separated by commas."
            " * means all."
        ),
    ] = ("*",)
    trusted_proxies: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="The proxies whose X-Forwarded-For header is trusted: IP addresses or networks, separated by"
            " commas. unix means everyone who connects to a Unix socket."
        ),
    ] = ()
    max_connections: Annotated[
        int,
        Field(
            ge=1,
            description="The maximum number of client connections. Further connections replace those that have been"
            " idle longest; if there are none, they are closed immediately.",
        ),
    ] = 4096
    max_connections_per_address: Annotated[
        int,
        Field(
            ge=0,
            description="The maximum number of connections of one client address, or of one IPv6 /64. It does not apply"
            " to trusted proxies and to Unix sockets. 0 disables it.",
        ),
    ] = 1024
    header_timeout: Annotated[
        float, Field(gt=0, description="Seconds in which the headers of a request must arrive.")
    ] = 10
    body_timeout: Annotated[float, Field(gt=0, description="Seconds in which the body of a request must arrive.")] = 600
    min_body_rate: Annotated[
        float,
        Field(
            ge=0,
            description="The minimum rate at which a body must arrive, in bytes per second, measured over 20 seconds."
            " 0 allows any rate.",
        ),
    ] = 500
    idle_timeout: Annotated[
        float, Field(gt=0, description="Seconds that a connection may stay open between two requests.")
    ] = 75
    shutdown_timeout: Annotated[
        float, Field(ge=0, description="Seconds that requests in progress have to finish when the server stops.")
    ] = 10

    @field_validator("cors_origins", "trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return _split_list(value)

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            try:
                if name != "unix":
                    ip_network(name)
            except ValueError as error:
                raise ValueError(f"must be IP addresses, networks, or unix: {error}") from None
        return value

    @property
    def open_files(self) -> int:
        """The number of open files that the process needs."""
        return self.max_connections + OTHER_FILES

    def connections_within(self, open_files: int) -> int:
        """Return how many connections are possible with this limit of open files, some of which other parts need."""
        return max(1, min(self.max_connections, open_files - min(OTHER_FILES, open_files // 2)))


class Admin(_Group):
    """The admin port."""

    host: Annotated[str, Field(min_length=1, description="The IP address of the admin port.")] = "127.0.0.1"
    port: Annotated[
        int | None,
        Field(
            ge=0,
            le=65535,
            description="The admin port, for metrics and statistics. 0 selects a free port. The value none"
            " disables it.",
        ),
    ] = 3001
    allowed_hosts: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="The host names by which the admin port can be reached, separated by commas. Loopback and the"
            " address of the port are always allowed."
        ),
    ] = ()

    metrics_token: Annotated[
        SecretStr | None,
        Field(
            description="The token with which Prometheus reads /metrics while the dashboard is enabled: at least 16"
            " visible ASCII characters. Programs on the machine of the server need none."
        ),
    ] = None

    @field_validator("port", mode="before")
    @classmethod
    def _is_disabled(cls, value: object) -> object:
        return None if isinstance(value, str) and value.lower() == NONE else value

    @field_validator("metrics_token")
    @classmethod
    def _is_token(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _TOKEN.fullmatch(value.get_secret_value()):
            raise ValueError("must be 16 to 255 visible ASCII characters; openssl rand -hex 32 generates such a token")
        return value

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return _split_list(value)

    @field_validator("allowed_hosts")
    @classmethod
    def _are_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not _HOST.fullmatch(name):
                raise ValueError("must be host names or addresses, each with or without a port")
        return value


_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")

_TOKEN = re.compile(r"[!-~]{16,255}")


class Database(_Group):
    """The database that stores the events."""

    url: Annotated[
        SecretStr | None,
        Field(description="The URL of the PostgreSQL database. Without it, the server uses the embedded PostgreSQL."),
    ] = None
    data_dir: Annotated[Path | None, Field(description="The data directory of the embedded PostgreSQL.")] = None
    max_connections: Annotated[
        int, Field(ge=1, description="The number of database connections that each server keeps open for requests.")
    ] = 10

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _is_dsn(value.get_secret_value()):
            raise ValueError(
                "not a PostgreSQL URL such as postgresql://user:password@host:5432/database; in a password, write @"
                " as %40"
            )
        return value

    @field_validator("data_dir")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        try:
            return value and value.expanduser()
        except RuntimeError:
            raise ValueError("the home directory of this user is not known") from None


_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


def _is_dsn(text: str) -> bool:
    """Return whether libpq accepts a connection string. Otherwise, the server would try to connect forever."""
    try:
        parts = parse_dsn(text)
    except psycopg2.ProgrammingError:
        return False
    ports = parts.get("port", "").split(",")
    return (
        bool(parts)
        and "@" not in parts.get("host", "")[1:]  # the end of a password: errors would show it as the host
        and all(port.isdigit() or not port for port in ports)
        and parts.get("sslmode", "prefer") in _SSL_MODES
    )


class Ingest(_Group):
    """Limits of ingestion."""

    max_body_bytes: Annotated[
        int,
        Field(ge=1, description="The maximum size of a request body in bytes, both before and after decompression."),
    ] = 12_582_912
    max_body_memory: Annotated[
        int,
        Field(
            ge=1,
            description="The maximum size in bytes of all bodies that are being received or processed. A client address"
            " may use a quarter of it. Further bodies are not read for up to 10 s, and then get a 503.",
        ),
    ] = 134_217_728
    max_queue_events: Annotated[
        int,
        Field(
            ge=1,
            description="The maximum number of events that wait for a commit. If it is reached, requests get a 503.",
        ),
    ] = 100_000
    max_queue_bytes: Annotated[
        int,
        Field(
            ge=1,
            description="The maximum size in bytes of the events that wait for a commit. If it is reached, requests get"
            " a 503.",
        ),
    ] = 67_108_864
    commit_timeout: Annotated[
        float,
        Field(
            gt=0,
            description="Seconds in which the events of a request must be committed. Otherwise the request gets a 503.",
        ),
    ] = 10
    timestamp_tolerance: Annotated[
        int,
        Field(
            ge=0,
            le=31_536_000,
            description="Seconds by which the timestamp of a request may differ from the clock of the server.",
        ),
    ] = 600


class Retention(_Group):
    """The time for which events are stored."""

    days: Annotated[
        int | None,
        Field(
            ge=1,
            le=36_500,
            description="The number of days for which events are stored, for applications without their own number."
            " Without it, events are stored forever.",
        ),
    ] = None


class Insight(_Group):
    """Statistics: their aggregation, and their computation over HTTP."""

    enabled: Annotated[
        bool,
        Field(
            description="Whether the server aggregates events for statistics in the background. Of all servers of a"
            " database, one does it at a time."
        ),
    ] = True
    interval: Annotated[
        float, Field(gt=0, le=3600, description="Seconds between two looks for new events to aggregate.")
    ] = 5
    connections: Annotated[
        int,
        Field(
            ge=1,
            le=100,
            description="The maximum number of statistics that a server computes at the same time. Each needs a process"
            " and a database connection, which exist only while they are used.",
        ),
    ] = 2
    query_timeout: Annotated[
        float,
        Field(gt=0, description="Seconds that it may take to compute statistics. Otherwise the request gets a 503."),
    ] = 10
    max_waiting: Annotated[
        int,
        Field(
            ge=0,
            description="The maximum number of requests for statistics that wait until others are computed. Further"
            " ones get a 503.",
        ),
    ] = 100
    cache_bytes: Annotated[
        int, Field(ge=0, description="The memory for computed statistics, in bytes. 0 disables the cache.")
    ] = 16_777_216
    require_token: Annotated[
        bool,
        Field(
            description="Require a token to read statistics also from programs on this machine. Other machines always"
            " need one."
        ),
    ] = False


class Dashboard(_Group):
    """The dashboard on the admin port, and who may open it."""

    enabled: Annotated[
        bool | None,
        Field(
            description="Whether the admin port serves the dashboard. Without it, only if the admin port listens on a"
            " loopback address."
        ),
    ] = None
    url: Annotated[
        str | None,
        Field(
            description="The URL by which browsers reach the admin port, such as https://stats.example.org, if it is"
            " behind a proxy. It has no path."
        ),
    ] = None
    user_header: Annotated[
        str | None,
        Field(
            description="The header in which an authenticating proxy sends the name of the user, such as"
            " X-Remote-User. It is accepted only from addresses in TK__SERVER__TRUSTED_PROXIES. Without it, nobody is"
            " signed in by a proxy."
        ),
    ] = None
    users_share: Annotated[
        bool, Field(description="Whether the users of the proxy may share numbers with others, or only see them.")
    ] = False

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        return None if value is None else origin_of(value)

    @field_validator("user_header")
    @classmethod
    def _is_header(cls, value: str | None) -> str | None:
        if value is not None and not _HEADER.fullmatch(value):
            raise ValueError("must be the name of a header, such as X-Remote-User")
        return value


class Public(_Group):
    """The pages with totals of published applications, on the public port."""

    embed_origins: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="The origins whose web pages may embed public pages, separated by commas, such as"
            " https://example.org. By default, none may."
        ),
    ] = ()

    @field_validator("embed_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return _split_list(value)

    @field_validator("embed_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(origin_of, value))


_HEADER = re.compile(r"[A-Za-z0-9-]{1,100}")


def origin_of(url: str) -> str:
    """Return the scheme, the host and the port of a URL, without a slash at the end.

    :raise ValueError: if it is not a URL of a server, or has a path other than that of the dashboard.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    is_server = parts.scheme in ("http", "https") and bool(_HOST.fullmatch(parts.netloc)) and port != 0
    if not is_server or parts.path not in ("", "/", "/dashboard", "/dashboard/") or parts.query or parts.fragment:
        raise ValueError("must be a URL such as https://stats.example.org, without a path")
    return f"{parts.scheme}://{parts.netloc.lower()}"


class Quarantine(_Group):
    """The time for which invalid events are kept."""

    days: Annotated[
        int,
        Field(
            ge=0,
            le=36_500,
            description="The number of days for which invalid events are kept in quarantine. 0 keeps only the reasons"
            " and counts, for 7 days, and drops the events.",
        ),
    ] = 7


class RateLimit(_Group):
    """Limits on requests of applications, and on failed authentications of addresses."""

    free_rpm: Annotated[
        int | None,
        Field(
            ge=1,
            description="Requests per minute for each application whose token has the tier free. Without it, there is"
            " no limit.",
        ),
    ] = None
    pro_rpm: Annotated[int | None, Field(ge=1, description="The same for the tier pro.")] = None
    business_rpm: Annotated[int | None, Field(ge=1, description="The same for the tier business.")] = None
    enterprise_rpm: Annotated[int | None, Field(ge=1, description="The same for the tier enterprise.")] = None
    auth_failures_per_minute: Annotated[
        int,
        Field(
            ge=0,
            description="Failed authentications per minute for each client address. If an address exceeds this limit,"
            " its requests get a 429, except with credentials that succeeded from there within an hour. 0 disables the"
            " limit.",
        ),
    ] = 60
    auth_failures_burst: Annotated[
        int, Field(ge=1, description="Failed authentications that an address may have in quick succession.")
    ] = 100

    def per_minute(self) -> dict[str, int]:
        """Return the requests per minute by tier. Tiers without a limit are missing."""
        limits = {
            "free": self.free_rpm,
            "pro": self.pro_rpm,
            "business": self.business_rpm,
            "enterprise": self.enterprise_rpm,
        }
        return {tier: limit for tier, limit in limits.items() if limit is not None}


class Redis(_Group):
    """A Redis server, with which all servers share the limits of applications."""

    url: Annotated[
        SecretStr | None,
        Field(
            description="The URL of a Redis or Valkey server, such as redis://user:password@host:6379/0, or rediss://"
            " with TLS. All servers then share the limits by tier. Without it, each server has its own."
        ),
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


def _without_empty(values: dict[str, Any]) -> dict[str, Any]:
    """Return settings without white space around them, and without those that are empty: these have their defaults."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        cleaned = value.strip() if isinstance(value, str) else value
        if isinstance(cleaned, dict):
            cleaned = _without_empty(cleaned)
        if cleaned not in ("", {}):
            result[name] = cleaned
    return result


class Settings(BaseSettings):
    """All settings. Overrides have precedence over the environment, and the environment over the ``.env`` file."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="ignore", frozen=True)

    server: Server = Server()
    admin: Admin = Admin()
    database: Database = Database()
    ingest: Ingest = Ingest()
    retention: Retention = Retention()
    insight: Insight = Insight()
    dashboard: Dashboard = Dashboard()
    public: Public = Public()
    quarantine: Quarantine = Quarantine()
    rate_limit: RateLimit = RateLimit()
    redis: Redis = Redis()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 -- the signature of the base class
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[Any, ...]:
        """Let an empty value mean the same as none, whatever its source."""
        sources = (init_settings, env_settings, dotenv_settings)
        return tuple(lambda source=source: _without_empty(source()) for source in sources)

    @property
    def dashboard_enabled(self) -> bool:
        """True if the admin port serves the dashboard."""
        enabled = self.dashboard.enabled
        return self.admin.port is not None and (_is_loopback(self.admin.host) if enabled is None else enabled)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load(overrides: Mapping[str, Any]) -> Settings:
    """Read the settings.

    :param overrides: values by the names of their variables, such as ``TK__SERVER__PORT``.
    :raise InvalidSettings: if a value is invalid, or if a variable that begins with ``TK__`` is not a setting.
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
        raise InvalidSettings(f"{PREFIX}…: this is a group of settings and has no value") from None


def variable(*path: str) -> str:
    """Return the name of the variable of a setting, such as ``("server", "port")``."""
    return PREFIX + "__".join(path).upper()


def variables() -> Iterator[tuple[str, Any, str]]:
    """Return the name, the default and the description of each variable."""
    for group_name, group in Settings.model_fields.items():
        for name, field in type(group.default).model_fields.items():
            yield variable(group_name, name), field.default, field.description or ""


def _check_names(names: list[str]) -> None:
    known = [name for name, _, _ in variables()]
    for name in names:
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            similar = difflib.get_close_matches(name.upper(), known, n=1)
            hint = f"; did you mean {similar[0]}?" if similar else ""
            raise InvalidSettings(f"{name}: unknown setting{hint}")


def _nested(overrides: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    nested: dict[str, dict[str, Any]] = {}
    for name, value in overrides.items():
        group, _, field = name.removeprefix(PREFIX).lower().partition("__")
        nested.setdefault(group, {})[field] = value
    return nested
