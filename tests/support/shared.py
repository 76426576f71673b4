"""Directories that take long to build, and that all processes of a test run share."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

_VARIABLE = "TKSERVER_SHARED_DIRECTORY"


def create_shared_directory() -> Path:
    """Create the directory that contains the shared ones. Processes that are started later find it."""
    directory = Path(tempfile.mkdtemp(prefix="tk"))
    directory.chmod(0o755)  # a server that was started as root continues as another user
    os.environ[_VARIABLE] = str(directory)
    return directory


def built_once(name: str, build: Callable[[Path], None]) -> Path:
    """Return a directory, which the first process that needs it builds. The others wait for it.

    :param build: fills the empty directory. If it fails, the next process tries again.
    """
    parent = Path(os.environ[_VARIABLE])
    directory, complete = parent / name, parent / f"{name}.complete"
    with (parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(mode=0o755)
            build(directory)
            complete.touch()
    return directory
