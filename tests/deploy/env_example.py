"""``deploy/.env.example``, made from the settings that there are: ``python -m tests.deploy.env_example``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tkserver.config import variables

FILE = Path(__file__).parents[2] / "deploy" / ".env.example"

HEAD = """\
# All settings, with their defaults. Those without a default stand without a value. The file goes where README.md,
# beside it, says; what stands in the environment wins over it.

# Only for docker-compose.yml: the password of the database's role, such as `openssl rand -hex 24` prints.
POSTGRES_PASSWORD=
"""


def example() -> str:
    return "\n".join([HEAD, *_settings()])


def _settings() -> Iterator[str]:
    for name, default, description in variables():
        yield textwrap.fill(description, 118, initial_indent="# ", subsequent_indent="# ")
        yield f"#{name}={_written(default)}\n"


def _written(default: Any) -> str:
    if default is None:
        return ""
    return ",".join(default) if isinstance(default, tuple) else str(default)


if __name__ == "__main__":
    FILE.write_text(example())
