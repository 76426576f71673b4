"""Parse a Dockerfile, and run its steps in a directory, without a container engine."""

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
"""An instruction and its arguments, joined to one line."""


def stages_of(text: str) -> list[list[Step]]:
    """Return the steps of each stage. The first step of a stage is ``FROM``."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    steps: list[Step] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        instruction, _, arguments = line.strip().partition(" ")
        steps.append((instruction, arguments if instruction == "HEALTHCHECK" else re.sub(r"\s+", " ", arguments)))
    starts = [index for index, (instruction, _) in enumerate(steps) if instruction == "FROM"]
    return [steps[start:end] for start, end in zip(starts, [*starts[1:], len(steps)], strict=True)]


def arguments_of(stage: list[Step], instruction: str) -> list[str]:
    """Return the arguments of each instruction of this kind."""
    return [arguments for name, arguments in stage if name == instruction]


def only(stage: list[Step], instruction: str) -> str:
    """Return the arguments of an instruction that occurs exactly once."""
    (arguments,) = arguments_of(stage, instruction)
    return arguments


def command_of(text: str) -> list[str]:
    """Return the arguments of a command in exec form, without the options before it."""
    command: list[str] = json.loads(text[text.index("[") :])
    return command


def variables_of(stage: list[Step]) -> dict[str, str]:
    """Return the variables that ``ENV`` sets."""
    return {name: value for arguments in arguments_of(stage, "ENV") for name, value in _assignments(arguments)}


def _assignments(arguments: str) -> list[tuple[str, str]]:
    return [(name, value) for name, _, value in (word.partition("=") for word in shlex.split(arguments))]


@dataclass
class Builder:
    """Runs the steps of a build stage with the Python that runs the tests, and with pip's cache.

    :ivar context: the build context.
    :ivar root: the directory that stands for ``/``.
    :ivar places: the directories of the image that the steps write to. Only these exist.
    """

    context: Path
    root: Path
    places: tuple[str, ...]
    directory: Path = field(init=False)
    variables: dict[str, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.directory = self.root

    def inside(self, text: str) -> str:
        """Return the text with the paths of the image replaced by paths below ``root``."""
        names = "|".join(map(re.escape, self.places))
        return re.sub(rf"(?<![\w./])({names})(?![\w.])", lambda found: f"{self.root}{found[1]}", text)

    def run(self, stage: list[Step]) -> None:
        for instruction, arguments in stage:
            getattr(self, f"_{instruction.lower()}")(arguments)

    def _from(self, image: str) -> None:
        """Do nothing: the Python that runs the tests replaces the base image."""

    def _env(self, arguments: str) -> None:
        self.variables.update(_assignments(arguments))

    def _workdir(self, path: str) -> None:
        self.directory = Path(self.inside(path))
        self.directory.mkdir(parents=True, exist_ok=True)

    def _copy(self, arguments: str) -> None:
        *sources, target = shlex.split(arguments)
        for name in sources:
            source, place = self.context / name, self.directory / target
            if source.is_dir():
                shutil.copytree(source, place, dirs_exist_ok=True)
            else:
                shutil.copy(source, place / source.name)

    def _run(self, command: str) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        isolated = {"PATH": path, "PYTHONNOUSERSITE": "1", "PYTHONPATH": ""}
        done = subprocess.run(
            ["sh", "-euc", self.inside(command)],
            cwd=self.directory,
            env={**environment(), **self.variables, **isolated, "PIP_NO_CACHE_DIR": "0"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
