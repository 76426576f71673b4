"""The user of the operating system who runs the embedded PostgreSQL and owns its data."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tkserver import log
from tkserver.storage.embedded import posix_acl
from tkserver.storage.embedded.exceptions import EmbeddedError

_log = log.logger(__name__)

UNPRIVILEGED_USER = "tkserver"
"""The user for a server that is started as root. PostgreSQL refuses to run as root."""


@dataclass(frozen=True)
class DatabaseUser:
    """The user who runs PostgreSQL.

    :ivar account: ``None`` if it is the user of this process.
    """

    account: pwd.struct_passwd | None

    @classmethod
    def for_this_process(cls, name: str = UNPRIVILEGED_USER) -> DatabaseUser:
        """Return the user of this process, or the one with this name if this process runs as root.

        :raise EmbeddedError: if there is no such user. Only ``UNPRIVILEGED_USER`` is created.
        """
        if os.geteuid() != 0:
            return cls(None)
        try:
            return cls(pwd.getpwnam(name))
        except KeyError:
            if name == UNPRIVILEGED_USER:
                return cls._create()
            raise EmbeddedError(f"there is no user {name!r}") from None

    @classmethod
    def _create(cls) -> DatabaseUser:
        command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", UNPRIVILEGED_USER]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            raise EmbeddedError(
                f"the server does not continue as root, and the user {UNPRIVILEGED_USER!r} cannot be created:"
                " create it, or start the server as another user"
            ) from None
        _log.info(
            "created the user {user} to run the server instead of root", user=UNPRIVILEGED_USER, event="user_made"
        )
        return cls(pwd.getpwnam(UNPRIVILEGED_USER))

    @property
    def subprocess_options(self) -> dict[str, Any]:
        """The arguments of :class:`subprocess.Popen` that start a program as this user."""
        if self.account is None:
            return {}
        return {"user": self.account.pw_uid, "group": self.account.pw_gid, "extra_groups": []}

    def own(self, path: Path) -> None:
        """Make this user the owner of a file or directory."""
        if self.account is not None:
            os.chown(path, self.account.pw_uid, self.account.pw_gid, follow_symlinks=False)

    def create_private_directory(self, path: Path) -> None:
        """Create a directory that only this user can access, unless it exists.

        :raise EmbeddedError: if the path exists and is something else.
        """
        try:
            path.mkdir(mode=0o700)
            self.own(path)
        except FileExistsError:
            # In a directory like /tmp, another user may have created it.
            status = path.lstat()
            is_own = status.st_uid == (self.account.pw_uid if self.account else os.geteuid())
            if not (is_own and stat.S_ISDIR(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o700):
                raise EmbeddedError(f"{path} is not a private directory of the database: remove it") from None

    def allow_traversal(self, path: Path) -> None:
        """Let this user pass through all parent directories of a path.

        :raise EmbeddedError: if that is not possible.
        """
        if self.account is None:
            return
        try:
            posix_acl.allow_traversal(self.account, path)
        except OSError as error:
            raise EmbeddedError(
                f"the user {self.account.pw_name!r}, who runs the server for root, cannot reach {path}"
                f" ({error.strerror}): move it to another directory, or start the server as another user"
            ) from None
