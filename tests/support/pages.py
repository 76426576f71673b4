"""Pages of the dashboard: their HTML, and what a reader sees of it."""

from __future__ import annotations

import re
from html import unescape

from tests.support.browser import Browser


async def html_of(browser: Browser, path: str, status: int = 200, **headers: str) -> str:
    """Open a page, and return its HTML.

    :param status: that the response must have.
    """
    reply = await browser.get(path, **headers)
    assert reply.status == status, reply.body.decode()
    return reply.body.decode()


def text_of(page: str) -> str:
    """Return the text of a page without markup, with single spaces."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", page))).replace("\u00a0", " ")


def cells_of(page: str, name: str) -> list[str]:
    """Return the texts of the cells in the first row of a table that begins with a name."""
    for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL):
        cells = [text_of(cell).strip() for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)]
        if cells and cells[0].startswith(name):
            return cells
    raise AssertionError(f"no row {name}")
