"""A Dockerfile, and what its steps make, without a container engine: in a directory that stands for the root of all."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.process import environment

Step = tuple[str, str]
"""An instruction, and what stands behind it in one line."""


def stages_of(text: str) -> list[list[Step]]:
    """The steps of each stage, ``FROM`` the first."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    steps: list[Step] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        instruction, _, rest = line.strip().partition(" ")
        steps.append((instruction, re.sub(r"\s+", " ", rest) if instruction != "HEALTHCHECK" else rest))
    begins = [place for place, (instruction, _) in enumerate(steps) if instruction == "FROM"]
    return [steps[begin:end] for begin, end in zip(begins, [*begins[1:], len(steps)], strict=True)]


def only(stage: list[Step], instruction: str) -> str:
    """What stands behind the one instruction of this kind."""
    (found,) = (rest for name, rest in stage if name == instruction)
    return found


def command_of(text: str) -> list[str]:
    """The arguments of a command in the exec form, behind any options."""
    found: list[str] = json.loads(text[text.index("[") :])
    return found


def variables_of(stage: list[Step]) -> dict[str, str]:
    """What ``ENV`` sets."""
    words = [word for instruction, rest in stage if instruction == "ENV" for word in shlex.split(rest)]
    return {name: value for name, _, value in (word.partition("=") for word in words)}


@dataclass
class Builder:
    """Runs the steps of a stage that builds something.

    :ivar context: the directory that the image is built from.
    :ivar root: what stands for ``/``.
    :ivar places: directories of the image that the steps write to; no others are there.
    """

    context: Path
    root: Path
    places: tuple[str, ...]
    directory: Path = field(init=False)

    def __post_init__(self) -> None:
        self.directory = self.root

    def inside(self, text: str) -> str:
        """The text with the image's directories where they really are."""
        names = "|".join(map(re.escape, self.places))
        return re.sub(rf"(?<![\w./])({names})(?![\w.])", lambda found: f"{self.root}{found[1]}", text)

    def run(self, stage: list[Step]) -> None:
        for instruction, rest in stage:
            getattr(self, f"_{instruction.lower()}")(rest)

    def _from(self, image: str) -> None:
        """This machine's Python stands for it."""

    def _workdir(self, path: str) -> None:
        self.directory = Path(self.inside(path))
        self.directory.mkdir(parents=True, exist_ok=True)

    def _copy(self, rest: str) -> None:
        *sources, target = shlex.split(rest)
        for name in sources:
            source, place = self.context / name, self.directory / target
            if source.is_dir():
                shutil.copytree(source, place, dirs_exist_ok=True)
            else:
                shutil.copy(source, place / source.name)

    def _run(self, command: str) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", "-euc", self.inside(command)],
            cwd=self.directory,
            env={**environment(), "PATH": path, "PYTHONNOUSERSITE": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
