"""Blocking requests to a server in another process."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

from tests.support.client import App

TIMEOUT = 15.0
"""Seconds within which a server must respond."""


def get_json(url: str) -> tuple[int, dict[str, object]]:
    """Return the status and the JSON of a response."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def get_text(url: str) -> str:
    """Return the body of a response with status 200."""
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        return str(response.read().decode())


def post_batch(url: str, app: App, body: bytes) -> int:
    """Send a signed batch, and return the status of the response."""
    request = urllib.request.Request(url + app.path, body, app.headers(body))
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def is_ready(url: str) -> bool:
    """Return whether a server is ready to store events."""
    return get_json(f"{url}/health/ready")[0] == 200
