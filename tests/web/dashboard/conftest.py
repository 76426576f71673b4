"""A server of the database of a module, and a browser. The module defines ``module_database``."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_twisted

from tests.support.browser import Browser, signed_in
from tests.support.database import Database
from tests.support.server import running_server
from tkserver.server.supervisor import Supervisor


@pytest_twisted.async_yield_fixture(scope="module")
async def server(module_database: Database) -> AsyncIterator[Supervisor]:
    """A server of :func:`module_database`."""
    async with running_server(module_database) as running:
        yield running


@pytest_twisted.async_yield_fixture
async def browser(module_database: Database, server: Supervisor) -> AsyncIterator[Browser]:
    """A browser that is signed in."""
    yield await signed_in(module_database, server.admin_port)
