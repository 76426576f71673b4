"""Gives up root privileges for good, after everything that needs them has been done."""

from __future__ import annotations

import os
import pwd
import stat
from contextlib import suppress
from pathlib import Path

import tkserver
import twisted
from tkserver import log
from tkserver.config import variable
from tkserver.storage.embedded.exceptions import EmbeddedError
from tkserver.storage.embedded.os_user import DatabaseUser

_log = log.logger(__name__)

_LIBRARIES = [Path(module.__file__ or "").parent for module in (os, twisted, tkserver)]
"""Directories from which modules are imported, some of them only when they are needed."""


class CannotDrop(Exception):
    """The process cannot become another user. The text is the reason."""


class Privileges:
    """The root privileges of a process.

    :param user: the name of the user that the process becomes.
    :param log_file: becomes the property of that user.
    :param pid_file: remains the property of root: whoever can write it can make root send signals to any process.
    """

    def __init__(self, user: str, log_file: Path | None = None, pid_file: Path | None = None) -> None:
        self._user = user
        self._log_file = log_file
        self._files = [file for file in (log_file, pid_file) if file is not None]

    def drop(self) -> None:
        """Become the user with all of its groups, if the process runs as root.

        :raise CannotDrop: if that is not possible. The process must then end.
        """
        if os.geteuid() != 0:
            return
        account = self._account()
        if self._log_file is not None:
            _give(self._log_file, account)
        try:
            os.initgroups(account.pw_name, account.pw_gid)
            os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
            os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
        except OSError as error:
            raise CannotDrop(self._problem(error.strerror)) from None
        for library in _LIBRARIES:
            if not os.access(library, os.R_OK | os.X_OK):
                raise CannotDrop(self._problem(f"this user cannot read {library}"))
        _log.info("continuing as the user {user} instead of root", user=account.pw_name, event="privileges_dropped")
        self._check_directories(account.pw_name)

    def _check_directories(self, user: str) -> None:
        for directory in {file.parent for file in self._files}:
            if not os.access(directory, os.W_OK | os.X_OK):
                _log.warn(
                    "the user {user} cannot write to {directory}: a log file there is not rotated, and a pid file there"
                    " remains when the server stops",
                    user=user,
                    directory=str(directory),
                    event="directory_not_writable",
                )

    def _account(self) -> pwd.struct_passwd:
        try:
            user = DatabaseUser.for_this_process(self._user)
            for library in _LIBRARIES:
                user.allow_traversal(library)
        except EmbeddedError as error:
            raise CannotDrop(self._problem(str(error))) from None
        assert user.account is not None
        if user.account.pw_uid == 0:
            raise CannotDrop(self._problem("this user has root privileges"))
        return user.account

    def _problem(self, reason: str | None) -> str:
        setting = variable("server", "user")
        return f"cannot give up root privileges and become the user {self._user!r} ({setting}): {reason}"


def _give(file: Path, account: pwd.struct_passwd) -> None:
    """Make a user the owner of a file, unless the path may lead to a file of somebody else."""
    with suppress(OSError):
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid == 0:
                os.fchown(descriptor, account.pw_uid, account.pw_gid)
        finally:
            os.close(descriptor)
