"""The files of the repository."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def copy_tracked(target: Path, names: Sequence[str] = (".",)) -> Path:
    """Copy the tracked files in their present state, without the other files of the checkout.

    :param names: git pathspecs.
    :return: ``target``.
    """
    listed = subprocess.check_output(["git", "ls-files", "-z", "--", *names], cwd=ROOT, text=True)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((ROOT / name).read_bytes())
    return target
