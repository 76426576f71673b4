"""The connection parameters that libpq uses for a connection string: its own, of the environment, and of service files.

psycopg2 has no function for this. Therefore this module calls libpq, to which psycopg2 is linked, directly.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import cache
from typing import Any

from psycopg2 import _psycopg

from tkserver.storage.errors import Unavailable

_INVALID = b"none-because-tkserver-only-reads-parameters"
"""The value of ``sslmode`` that lets libpq stop before it resolves host names and connects."""


class _Option(ctypes.Structure):
    """``PQconninfoOption`` in libpq-fe.h."""

    _fields_ = (
        *((name, ctypes.c_char_p) for name in ("keyword", "variable", "compiled", "value", "label", "display")),
        ("display_size", ctypes.c_int),
    )


def effective_parameters(dsn: str) -> dict[str, str]:
    """Return the parameters that libpq uses for a connection string, except ``sslmode``.

    They come from the string, a service file, the environment, and the defaults of libpq, in this order.

    :param dsn: a valid URL or connection string.
    :raise Unavailable: if libpq does not accept them together, or if there is no such service.
    """
    libpq = _load_library()
    keywords = (ctypes.c_char_p * 3)(b"dbname", b"sslmode", None)
    values = (ctypes.c_char_p * 3)(dsn.encode(), _INVALID, None)
    connection = libpq.PQconnectStartParams(keywords, values, 1)
    try:
        problem = libpq.PQerrorMessage(connection)
        if _INVALID not in problem:
            raise Unavailable(problem.decode(errors="replace").strip().partition("\n")[0])
        options = libpq.PQconninfo(connection)
        parameters = dict(_values(options))
        libpq.PQconninfoFree(options)
    finally:
        libpq.PQfinish(connection)
    del parameters["sslmode"]
    return parameters


def _values(options: Any) -> Iterator[tuple[str, str]]:
    index = 0
    while options[index].keyword is not None:
        if options[index].value:
            yield options[index].keyword.decode(), options[index].value.decode(errors="surrogateescape")
        index += 1


@cache
def _load_library() -> ctypes.CDLL:
    """Return a library in which the functions of libpq can be found: the module of psycopg2 is linked to it."""
    library = ctypes.CDLL(_psycopg.__file__)
    library.PQconnectStartParams.restype = ctypes.c_void_p
    library.PQconninfo.restype = ctypes.POINTER(_Option)
    library.PQconninfo.argtypes = library.PQfinish.argtypes = library.PQerrorMessage.argtypes = (ctypes.c_void_p,)
    library.PQerrorMessage.restype = ctypes.c_char_p
    library.PQconninfoFree.argtypes = (ctypes.POINTER(_Option),)
    return library
