"""The workflows in ``.github/workflows`` and the script that they call."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from tests.support.pyproject import PROJECT, python_versions
from tests.support.source import ROOT

WORKFLOWS: dict[str, Any] = {
    path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")
}
CI_RUN = (ROOT / ".ci/run").read_text()

each_workflow = pytest.mark.parametrize("workflow", WORKFLOWS.values(), ids=WORKFLOWS)


def steps(workflow: Any) -> Iterator[Any]:
    for job in workflow["jobs"].values():
        yield from job.get("steps", [])


def commands(workflow: Any) -> list[str]:
    return [step["run"] for step in steps(workflow) if "run" in step]


def test_classifiers_agree_with_requires_python() -> None:
    """The classifiers name all versions of Python from the lowest supported version on, including this one."""
    versions = python_versions()
    minors = [int(version.removeprefix("3.")) for version in versions]
    assert minors == list(range(minors[0], minors[-1] + 1))
    assert SpecifierSet(PROJECT["requires-python"]) == SpecifierSet(f">={versions[0]}")
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in versions


def test_ci_runs_on_every_supported_python() -> None:
    """The workflow calls ``.ci/run`` with each supported version of Python."""
    job = WORKFLOWS["ci"]["jobs"]["checks"]
    assert job["strategy"]["matrix"] == {"python": python_versions()}
    (install,) = (step for step in job["steps"] if "setup-python" in step.get("uses", ""))
    assert install["with"]["python-version"] == "${{ matrix.python }}"
    assert job["steps"][-1] == {"run": ".ci/run", "env": {"PYTHON": "python${{ matrix.python }}"}}


def test_ci_run_uses_the_given_python() -> None:
    """``.ci/run`` creates its environment with the interpreter that ``PYTHON`` names."""
    assert '"${PYTHON:-python3}" -m venv "$environment"' in CI_RUN
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


def test_ci_run_ends_with_the_test_command_of_the_readme() -> None:
    """``.ci/run`` runs the linters and the type checker, and then the tests as the README describes."""
    *checks, tests = [line for line in CI_RUN.splitlines() if line][-4:]
    assert checks == ["ruff check .", "ruff format --check .", "mypy"]
    assert tests in re.findall(r"\bpython -m pytest.*", (ROOT / "README.md").read_text())


def test_release_builds_and_checks_the_distributions() -> None:
    """The workflow checks the wheel and the source distribution before it uploads them."""
    build = WORKFLOWS["release"]["jobs"]["build"]
    assert {"python -m build", "twine check --strict dist/*"} <= set(commands(WORKFLOWS["release"]))
    assert build["steps"][-1]["with"] == {"name": "dist", "path": "dist/", "if-no-files-found": "error"}


def test_release_publishes_checked_tags_only() -> None:
    """Only a tag is published, by a trusted publisher, after all checks have passed."""
    jobs = WORKFLOWS["release"]["jobs"]
    assert jobs["checks"]["uses"] == "./.github/workflows/ci.yml"
    publish = jobs["publish"]
    assert publish["if"] == jobs["checks"]["if"] == "github.ref_type == 'tag'"
    assert publish["needs"] == ["build", "checks"]
    assert publish["environment"] == "pypi"
    assert publish["permissions"] == {"id-token": "write"}
    assert "run" not in publish["steps"][-1]


@each_workflow
def test_workflow_has_minimal_permissions(workflow: Any) -> None:
    """A workflow can only read the repository, and does not leave its token in the checkout."""
    assert workflow["permissions"] == {"contents": "read"}
    granted = [job["permissions"] for job in workflow["jobs"].values() if "permissions" in job]
    assert granted in ([], [{"id-token": "write"}])
    checkouts = [step for step in steps(workflow) if "actions/checkout" in step.get("uses", "")]
    assert all(step["with"] == {"persist-credentials": False} for step in checkouts)


@each_workflow
def test_actions_are_pinned(workflow: Any) -> None:
    """Each action is pinned to a commit."""
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"]) for step in steps(workflow) if "uses" in step)


@each_workflow
def test_workflow_has_time_limit_and_concurrency_group(workflow: Any) -> None:
    """A new run of a workflow replaces or follows the previous one, and each job has a time limit."""
    assert "github.ref" in workflow["concurrency"]["group"]
    assert all("timeout-minutes" in job for job in workflow["jobs"].values() if "steps" in job)
