"""A browser without scripts: it has one cookie, and sends forms as browsers do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

import treq
from treq.client import HTTPClient
from twisted.internet import reactor
from twisted.web.client import Agent

from tests.support.client import Reply
from tests.support.command import InProcessCommand
from tests.support.database import Database

FORM = "application/x-www-form-urlencoded"


@dataclass
class Browser:
    """A browser that shows the dashboard of one server.

    :ivar headers: that it, or a proxy before the server, adds to each request.
    :ivar cookie: its name and value; empty if there is none.
    """

    port: int
    headers: dict[str, str] = field(default_factory=dict)
    cookie: str = ""

    @property
    def origin(self) -> str:
        """The origin of the pages."""
        return f"http://127.0.0.1:{self.port}"

    async def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str | None] | None = None
    ) -> Reply:
        """Send a request, and follow no redirect.

        :param headers: are added, or removed if the value is ``None``.
        """
        own = {"Cookie": self.cookie} if self.cookie else {}
        merged = {name: text for name, text in {**own, **self.headers, **(headers or {})}.items() if text is not None}
        response = await HTTPClient(Agent(reactor)).request(
            method, self.origin + path, headers=dict[Any, Any](merged), data=body, allow_redirects=False
        )
        content = await treq.content(response)
        received = {name.decode().lower(): b", ".join(v).decode() for name, v in response.headers.getAllRawHeaders()}
        return Reply(response.code, received, content)

    async def get(self, path: str = "/dashboard/", **headers: str) -> Reply:
        """Open a page. Underscores stand for hyphens in the names of headers."""
        return await self.request("GET", path, headers=_named(headers))

    async def post(self, path: str, fields: Mapping[str, str], **headers: str | None) -> Reply:
        """Send a form, and keep the cookie of the response."""
        sent = {"Content-Type": FORM, "Origin": self.origin, "Sec-Fetch-Site": "same-origin", **_named(headers)}
        reply = await self.request("POST", path, urlencode(fields).encode(), sent)
        if "set-cookie" in reply.headers:
            name, _, value = reply.headers["set-cookie"].partition(";")[0].partition("=")
            self.cookie = f"{name}={value}" if value else ""
        return reply

    async def sign_in(self, token: str, **headers: str | None) -> Reply:
        """Press the button of the page of a link."""
        return await self.post("/dashboard/sign-in", {"token": token}, **headers)

    async def csrf_token(self) -> str:
        """Return the token in the form of the first page."""
        found = re.search(r'name="csrf" value="([^"]+)"', (await self.get()).body.decode())
        assert found is not None
        return found[1]


def create_link(database: Database, *arguments: str) -> str:
    """Run ``tkserver dashboard``, and return the token of the link."""
    command = InProcessCommand({"TK__DATABASE__URL": database.dsn})
    link = str(command("dashboard", *arguments, "--json").json["url"])
    return urlsplit(link).query.removeprefix("token=")


async def signed_in(database: Database, port: int, *arguments: str) -> Browser:
    """Return a browser that has signed in.

    :param arguments: of ``tkserver dashboard``.
    """
    browser = Browser(port)
    assert (await browser.sign_in(create_link(database, *arguments))).status == 303
    return browser


def _named(headers: Mapping[str, str | None]) -> dict[str, str | None]:
    return {name.replace("_", "-"): text for name, text in headers.items()}
