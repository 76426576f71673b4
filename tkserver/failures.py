"""What a failure carries with it."""

from __future__ import annotations

from twisted.python.failure import Failure


def drop_frames(failure: Failure) -> None:
    """Keep the error, and let go of the frames that it went through.

    They hold whatever was being worked on, the body of a request for one, and hang together in circles: otherwise a
    flood of refused requests would fill the memory until the garbage collector happens to come by.
    """
    failure.tb = None
    error: BaseException | None = failure.value
    while error is not None:
        error.__traceback__ = None
        error = error.__context__
