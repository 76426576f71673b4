"""For ``twistd -ny tkserver.tac``: the server with the settings of the environment and the ``.env`` file."""

from twisted.application.service import Application

from tkserver.tap import makeService, options_in_tac

application = Application("tkserver")
makeService(options_in_tac()).setServiceParent(application)
