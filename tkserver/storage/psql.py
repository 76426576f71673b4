"""How psql is started."""

from __future__ import annotations

from collections.abc import Mapping

from psycopg2.extensions import make_dsn, parse_dsn

_PASSWORD = "PGPASSWORD"  # noqa: S105 -- the name of a variable


def without_password(dsn: str, environment: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return a connection string without its password, and an environment with it.

    All users of a machine can see the arguments of a process, but not its environment.

    :param dsn: a URL or a connection string of libpq.
    """
    parameters = parse_dsn(dsn)
    password = parameters.pop("password", None)
    own = {} if password is None else {_PASSWORD: password}
    return make_dsn(**parameters), {**environment, **own}
