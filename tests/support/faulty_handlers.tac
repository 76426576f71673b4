"""For ``twistd -y``: the server, with routes that do what no handler should. Of a failure's text, the body is a part."""

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
from tkserver.wire import answer

LATER = 0.05

_log = log.logger("tkserver.careless")


def explode(_, request):
    raise ValueError(request.text)


class Explosive:
    def __init__(self, text):
        self.text = text

    def __del__(self):
        raise ValueError(self.text)


async def fail_later(request):
    await deferLater(reactor, LATER)
    explode_late(None, request)


def explode_late(_, request):
    _log.info("still at it", event="still_at_it")
    explode(None, request)


def raise_value(request):
    explode(None, request)


def raise_decode(request):
    request.text.encode("ascii")


def raise_caused(request):
    try:
        explode(None, request)
    except ValueError as error:
        raise KeyError(request.text) from error


def leave_failed(request):
    fail(ValueError(request.text))


def leave_raised(request):
    maybeDeferred(explode, None, request)


def leave_coroutine(request):
    ensureDeferred(fail_later(request))


def leave_chain(request):
    deferLater(reactor, LATER).addCallback(explode_late, request)


def leave_cycle(request):
    """To be found by the garbage collector, while another request is handled."""
    deferred = Deferred()
    deferred.itself = deferred
    deferred.addCallback(explode, request)
    deferred.callback(None)


def collect(_):
    gc.collect()


def log_exceptions(request):
    error = ValueError(request.text)
    _log.warn("one, {error}, and\nanother line", error=error, event="odd", odd=[1], none=None)
    _log.warn("no such {thing}", error=error, event="odd")
    legacy.err(error, "an old line")
    legacy.msg(format="an old line: %(error)s", error=error)
    warnings.warn("a warning", RuntimeWarning, stacklevel=1)
    warnings.warn(request.text, stacklevel=1)
    print("printed\nin two lines")


def uncaught(request):
    threading.Thread(target=explode, args=(None, request)).start()
    Explosive(request.text)


@Api._router.route("/careless/<way>", methods=["POST"])
async def careless(self, request, way):
    request.text = request.body().decode()  # the body itself is let go of with the answer
    globals()[way](request)
    return answer.no_content()


application = Application("tkserver")
makeService(options_in_tac()).setServiceParent(application)
