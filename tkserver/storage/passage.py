"""Letting one user through a directory that is otherwise closed, and nobody else.

Where the server runs as root, its embedded database does not, and may have to reach what lies in root's home: the
virtual environment with its programs, or the data. An entry in the access control list of each directory on the way
(POSIX.1e; acl(5) on Linux) lets that user pass: not list it, not read in it.
"""

from __future__ import annotations

import os
import pwd
import struct
from pathlib import Path

_ATTRIBUTE = "system.posix_acl_access"
_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")  # tag, permissions, id
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NO_ID = 0xFFFFFFFF
_PASS = 1  # the x bit

Acl = dict[tuple[int, int], int]
"""Permissions by tag and id."""


def grant(user: pwd.struct_passwd, path: Path) -> None:
    """Let ``user`` pass through every directory above ``path``.

    :raise OSError: when that cannot be done.
    """
    for directory in reversed(path.resolve().parents):
        if not _may_pass(user, directory.stat()):
            os.setxattr(directory, _ATTRIBUTE, _encode(with_passage(_acl(directory), user.pw_uid)))


def with_passage(acl: Acl, uid: int) -> Acl:
    """The list with an entry that lets a user pass, a mask that allows that, and nobody else let in by the mask."""
    mask = acl.get((_MASK, _NO_ID), acl[_GROUP_OBJ, _NO_ID])
    kept = {
        key: permissions & (mask | ~_PASS) if key[0] in (_USER, _GROUP_OBJ, _GROUP) else permissions
        for key, permissions in acl.items()
    }
    return {**kept, (_USER, uid): acl.get((_USER, uid), 0) | _PASS, (_MASK, _NO_ID): mask | _PASS}


def _may_pass(user: pwd.struct_passwd, status: os.stat_result) -> bool:
    if status.st_uid == user.pw_uid:
        return bool(status.st_mode & 0o100)
    if status.st_gid == user.pw_gid:
        return bool(status.st_mode & 0o010)
    return bool(status.st_mode & 0o001)


def _acl(directory: Path) -> Acl:
    try:
        encoded = os.getxattr(directory, _ATTRIBUTE)
    except OSError:  # none yet: what the mode says
        mode = directory.stat().st_mode
        return {
            (_USER_OBJ, _NO_ID): mode >> 6 & 7,
            (_GROUP_OBJ, _NO_ID): mode >> 3 & 7,
            (_OTHER, _NO_ID): mode & 7,
        }
    return {(tag, who): permissions for tag, permissions, who in _ENTRY.iter_unpack(encoded[len(_VERSION) :])}


def _encode(acl: Acl) -> bytes:
    return _VERSION + b"".join(_ENTRY.pack(tag, permissions, who) for (tag, who), permissions in sorted(acl.items()))
