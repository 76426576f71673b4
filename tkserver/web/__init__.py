"""HTTP: the public API and the admin API. Generic HTTP code is in ``http``, sockets are in ``listen``."""
