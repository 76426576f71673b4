"""Generates ``deploy/.env.example`` from the settings: ``python -m tests.deploy.env_example``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tkserver.config import variables

FILE = Path(__file__).parents[2] / "deploy" / ".env.example"

HEAD = """\
# All settings with their defaults. A setting without a value has no default. README.md in this directory says where to
# put this file. Environment variables have precedence over it.

# Only for docker-compose.yml: the password of the database role. Generate one with `openssl rand -hex 24`.
POSTGRES_PASSWORD=
"""


def example() -> str:
    """Return the content of the file."""
    return "\n".join([HEAD, *_settings()])


def _settings() -> Iterator[str]:
    for name, default, description in variables():
        yield textwrap.fill(description, 118, initial_indent="# ", subsequent_indent="# ")
        yield f"#{name}={_format(default)}\n"


def _format(default: Any) -> str:
    if default is None:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return ",".join(default) if isinstance(default, tuple) else str(default)


if __name__ == "__main__":
    FILE.write_text(example())
