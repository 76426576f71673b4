"""POSIX access control lists (acl(5)), through the system's libacl.

If the server runs as root, the embedded PostgreSQL runs as another user. This user must be able to reach files below
directories that are closed to it, such as a virtual environment in the home directory of root. An entry in the access
control list of each parent directory lets this user pass through it, but not list it. ``chmod`` would let every user
pass.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
from pathlib import Path

_LIBRARY = "libacl.so.1"
_TYPE_ACCESS = 0x8000  # ACL_TYPE_ACCESS in sys/acl.h
_NUMERIC_IDS = 0x08  # TEXT_NUMERIC_IDS in acl/libacl.h


def allow_traversal(user: pwd.struct_passwd, path: Path) -> None:
    """Let a user pass through all parent directories of a path.

    :raise OSError: if the file system has no access control lists, libacl is missing, or permission is denied.
    """
    for directory in reversed(path.resolve().parents):
        if not _can_pass(user, directory.stat()):
            _add_entry(directory, user.pw_uid)


def _can_pass(user: pwd.struct_passwd, status: os.stat_result) -> bool:
    if status.st_uid == user.pw_uid:
        return bool(status.st_mode & 0o100)
    if status.st_gid == user.pw_gid:
        return bool(status.st_mode & 0o010)
    return bool(status.st_mode & 0o001)


def _add_entry(directory: Path, uid: int) -> None:
    """Add the execute permission for a user to the access control list of a directory."""
    libacl = _load_library()
    name = os.fsencode(directory)
    current, text, changed = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    try:
        current.value = _checked(libacl.acl_get_file(name, _TYPE_ACCESS))
        text.value = _checked(libacl.acl_to_any_text(current, None, ctypes.c_char(b"\n"), _NUMERIC_IDS))
        entries = ctypes.string_at(text).decode()
        changed.value = _checked(libacl.acl_from_text(with_traversal(entries, uid).encode()))
        _checked(libacl.acl_set_file(name, _TYPE_ACCESS, changed) == 0)
    finally:
        for allocated in (current, text, changed):
            if allocated:
                libacl.acl_free(allocated)


def _load_library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY, use_errno=True)
    except OSError:
        raise OSError(errno.ENOENT, f"the library {_LIBRARY} is missing") from None
    for function in (library.acl_get_file, library.acl_to_any_text, library.acl_from_text):
        function.restype = ctypes.c_void_p
    return library


def _checked(result: int | None) -> int:
    """Return the result of a function of libacl.

    :raise OSError: if it is a null pointer or false.
    """
    if not result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def with_traversal(entries: str, uid: int) -> str:
    """Return the entries of an access control list that also let a user pass, without granting anything to others.

    :param entries: one entry per line, with numeric ids, such as ``user:1000:r-x``.
    """
    permissions = dict(line.rsplit(":", 1) for line in entries.split())
    mask = permissions.get("mask:", permissions["group:"])
    own = f"user:{uid}"
    own_permissions = permissions.get(own, "---")
    if "x" not in mask:  # it will be, so the entries that the mask limits lose the permission
        for entry in permissions:
            if entry not in ("user:", "mask:", "other:"):
                permissions[entry] = permissions[entry][:2] + "-"
    permissions[own] = own_permissions[:2] + "x"
    permissions["mask:"] = mask[:2] + "x"
    return "\n".join(f"{entry}:{letters}" for entry, letters in permissions.items())
