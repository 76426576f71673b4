"""For ``twistd -y``: the server with additional routes whose handlers fail, each in a different way.

The text of every exception contains the body of the request, which must not be logged.
"""

import gc
import threading
import warnings

from twisted.application.service import Application
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred, fail, maybeDeferred
from twisted.internet.task import deferLater
from twisted.python import log as legacy

from tkserver import log
from tkserver.tap import makeService, options_in_tac
from tkserver.web.api import Api
from tkserver.web.http.response import no_content

DELAY = 0.05
"""Seconds, so that the request has been responded to."""

_log = log.logger("tkserver.faulty")


def raise_error(_, request):
    raise ValueError(request.text)


class RaisesWhenDeleted:
    def __init__(self, text):
        self.text = text

    def __del__(self):
        raise ValueError(self.text)


async def raise_later(request):
    await deferLater(reactor, DELAY)
    log_and_raise(None, request)


def log_and_raise(_, request):
    _log.info("still running", event="still_running")
    raise_error(None, request)


def raise_value(request):
    raise_error(None, request)


def raise_decode(request):
    request.text.encode("ascii")


def raise_caused(request):
    try:
        raise_error(None, request)
    except ValueError as error:
        raise KeyError(request.text) from error


def leave_failed(request):
    fail(ValueError(request.text))


def leave_raised(request):
    maybeDeferred(raise_error, None, request)


def leave_coroutine(request):
    ensureDeferred(raise_later(request))


def leave_chain(request):
    deferLater(reactor, DELAY).addCallback(log_and_raise, request)


def leave_cycle(request):
    """Leave a failed Deferred in a reference cycle: the garbage collector finds it during another request."""
    deferred = Deferred()
    deferred.itself = deferred
    deferred.addCallback(raise_error, request)
    deferred.callback(None)


def collect(_):
    gc.collect()


def log_exceptions(request):
    error = ValueError(request.text)
    _log.warn("one, {error}, and\nanother line", error=error, event="odd", odd=[1], none=None)
    _log.warn("no such {key}", error=error, event="odd")
    legacy.err(error, "a legacy line")
    legacy.msg(format="a legacy line: %(error)s", error=error)
    warnings.warn("a warning", RuntimeWarning, stacklevel=1)
    warnings.warn(request.text, stacklevel=1)
    print("printed\nin two lines")


def raise_uncaught(request):
    threading.Thread(target=raise_error, args=(None, request)).start()
    RaisesWhenDeleted(request.text)


@Api._router.route("/faulty/<handler>", methods=["POST"])
async def faulty(self, request, handler):
    body = await request.read_body(lambda: None)
    request.text = body.decode()  # the body itself is freed with the response
    globals()[handler](request)
    return no_content()


application = Application("tkserver")
makeService(options_in_tac()).setServiceParent(application)
