"""HTML responses of the dashboard: templates, and the headers that protect pages."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from functools import cache
from hashlib import blake2b
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tkserver.insight.facts import clean
from tkserver.web.http.request import ApiRequest
from tkserver.web.http.response import NO_STORE, Response

HEADERS = {
    # There are no inline scripts and styles: charts are SVG elements with classes.
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self';"
    " img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Vary": "Cookie, Accept-Language, Accept-Encoding",
}
"""The headers of all pages. They allow nothing from other hosts, and no frames."""

STYLE = "style.css"
"""The style sheet of all pages."""


COMPRESSION = 6
"""The level of gzip."""


@cache
def environment() -> Environment:
    """Return the environment of all templates. It escapes all values."""
    loader = PackageLoader("tkserver.web.dashboard")
    result = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    result.finalize = displayed
    result.globals["style"] = static_url(STYLE)
    result.globals["live_script"] = static_url("live.js")
    return result


def displayed(value: object) -> object:
    """Return a value as pages show it: texts from clients have no control characters, and are not too long."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def static_file(name: str) -> bytes:
    """Return the contents of a static file."""
    return files("tkserver.web.dashboard").joinpath("static", name).read_bytes()


@cache
def static_version(name: str) -> str:
    """Return a part of the URL of a static file that changes with its contents, so that browsers can keep it."""
    return blake2b(static_file(name), digest_size=6).hexdigest()


def static_url(name: str) -> str:
    """Return the URL of a static file."""
    return f"/dashboard/static/{static_version(name)}/{name}"


def page(
    template: str,
    status: int = 200,
    *,
    is_compressed: bool = False,
    headers: Mapping[str, str] = HEADERS,
    cache_control: str = NO_STORE,
    **values: object,
) -> Response:
    """Return a page.

    :param template: the name of a file in ``templates/``.
    :param is_compressed: true if the client accepts gzip.
    :param values: of the variables in the template.
    """
    body = environment().get_template(template).render(values).encode()
    if is_compressed:
        body, headers = gzip.compress(body, COMPRESSION), {**headers, "Content-Encoding": "gzip"}
    return Response(status, body, headers, content_type="text/html; charset=utf-8", cache_control=cache_control)


def accepts_gzip(request: ApiRequest) -> bool:
    """True if the client accepts compressed pages."""
    return "gzip" in (request.header("accept-encoding") or "")


def redirect(location: str) -> Response:
    """Return a redirect to a page that is then requested with GET."""
    return Response(303, b"", {**HEADERS, "Location": location}, content_type="text/html; charset=utf-8")
