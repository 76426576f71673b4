"""For ``twistd -ny tkserver.tac``: the server with the settings of the environment and the ``.env`` file."""

from twisted.application.service import Application

from tkserver.tap import makeService

application = Application("tkserver")
makeService({}).setServiceParent(application)
