"""What a request for statistics asks for: an application, and parameters."""

from __future__ import annotations

from urllib.parse import parse_qsl

from tkserver.insight.catalog import AppState, Catalog, Scope
from tkserver.web.http.request import ApiRequest
from tkserver.wire.api_errors import InvalidParameter, NotFound

MAX_PARAMETERS = 20

ENCODED_SLASH = "\0"
"""What routing passes for a slash that is encoded in a segment of the path."""


def find_app(catalog: Catalog, name: str, scope: Scope) -> AppState:
    """Return the application with a name.

    :param name: an id, a name or a slug, or one of these after that of the organization and a slash.
    :raise NotFound: if there is none that the client may read, or if there are several.
    """
    found = catalog.find(name.replace(ENCODED_SLASH, "/"), scope)
    if len(found) > 1:
        raise NotFound("several applications have this name: use the organization and the name, or the id")
    if not found:
        raise NotFound("there is no such application: /api/v1/apps lists those that you may read")
    return found[0]


def query_parameters(request: ApiRequest) -> dict[str, str]:
    """Return the parameters of the query string.

    :raise InvalidParameter: if it is not valid, or if a parameter is repeated.
    """
    text = request.uri.partition(b"?")[2].decode("latin-1")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS)
    except ValueError:
        raise InvalidParameter(f"the query string is not UTF-8, or has more than {MAX_PARAMETERS} parameters") from None
    parameters = dict(pairs)
    if len(parameters) < len(pairs):
        raise InvalidParameter("a parameter is repeated: use each one at most once")
    return parameters
