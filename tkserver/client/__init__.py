"""A client for Python programs on Twisted that send events.

.. code:: python

    from twisted.internet.task import react

    from tkserver.client import Client, EventBuilder, service


    async def main(reactor):
        build = EventBuilder(service("my-cli", "1.0.0"))
        async with Client("http://127.0.0.1:3000", org_id, app_id, token, secret, reactor=reactor) as client:
            result = await client.send([build.event("command_executed", {"command": "build"})])
        print(result.accepted, result.errors)


    react(main)

It is safe to send an event again: the server identifies events by their ids, and stores each event only once.
"""

from tkserver.client.client import Client
from tkserver.client.events import Event, EventBuilder, environment_here, service
from tkserver.client.responses import NotNow, Refused, Result, SendError
from tkserver.wire.api_errors import EventError
from tkserver.wire.event import Environment, Service

__all__ = [
    "Client",
    "Environment",
    "Event",
    "EventBuilder",
    "EventError",
    "NotNow",
    "Refused",
    "Result",
    "SendError",
    "Service",
    "environment_here",
    "service",
]
