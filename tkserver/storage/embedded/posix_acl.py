"""POSIX access control lists (acl(5)), through the system's libacl.

If the server runs as root, the embedded database runs as another user, which may have to reach files below a closed
directory: a virtual environment in root's home, for example. An entry in the access control list of each parent
directory lets this user pass through it, but not list it. ``chmod`` would let every user pass.
"""

from __future__ import annotations

import ctypes
import os
import pwd
from pathlib import Path

_TYPE_ACCESS = 0x8000  # ACL_TYPE_ACCESS in sys/acl.h
_NUMERIC_IDS = 0x08  # TEXT_NUMERIC_IDS in acl/libacl.h


def allow_traversal(user: pwd.struct_passwd, path: Path) -> None:
    """Let a user pass through all parent directories of a path.

    :raise OSError: if the file system or the operating system has no access control lists, or denies the change.
    """
    for directory in reversed(path.resolve().parents):
        if not _may_pass(user, directory.stat()):
            _add_entry(directory, user.pw_uid)


def _may_pass(user: pwd.struct_passwd, status: os.stat_result) -> bool:
    if status.st_uid == user.pw_uid:
        return bool(status.st_mode & 0o100)
    if status.st_gid == user.pw_gid:
        return bool(status.st_mode & 0o010)
    return bool(status.st_mode & 0o001)


def _add_entry(directory: Path, uid: int) -> None:
    """Add the execute permission for one user to the access control list of a directory."""
    libacl = ctypes.CDLL("libacl.so.1", use_errno=True)
    libacl.acl_get_file.restype = libacl.acl_from_text.restype = ctypes.c_void_p
    libacl.acl_to_any_text.restype = ctypes.c_void_p
    name = os.fsencode(directory)
    current = ctypes.c_void_p(_checked(libacl.acl_get_file(name, _TYPE_ACCESS)))
    text = ctypes.c_void_p(_checked(libacl.acl_to_any_text(current, None, ctypes.c_char(b"\n"), _NUMERIC_IDS)))
    changed = ctypes.c_void_p()
    try:
        entries = (ctypes.string_at(text) or b"").decode()
        changed.value = _checked(libacl.acl_from_text(with_traversal(entries, uid).encode()))
        _checked(libacl.acl_set_file(name, _TYPE_ACCESS, changed) == 0)
    finally:
        for allocated in (current, text, changed):
            if allocated:
                libacl.acl_free(allocated)


def with_traversal(entries: str, uid: int) -> str:
    """Return access control list entries that also let a user pass, and change the rights of nobody else.

    :param entries: one per line, with numeric ids, such as ``user:1000:r-x``.
    """
    permissions = dict(line.rsplit(":", 1) for line in entries.split())
    mask = permissions.get("mask:", permissions["group:"])
    for entry in permissions:
        if entry not in ("user:", "other:", "mask:"):  # the mask limits all other entries
            permissions[entry] = _intersection(permissions[entry], mask)
    own = f"user:{uid}"
    permissions[own] = permissions.get(own, "---")[:2] + "x"
    permissions["mask:"] = mask[:2] + "x"
    return "\n".join(f"{entry}:{rights}" for entry, rights in permissions.items())


def _intersection(rights: str, mask: str) -> str:
    return "".join(right if right in mask else "-" for right in rights)


def _checked(result: int | None) -> int:
    """Return a result of libacl.

    :raise OSError: if it is false.
    """
    if not result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
