"""Parts of the build that pyproject.toml cannot express."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class BuildWithSchema(build_py):
    """Copy the migrations from ``schema/`` into the package. An editable install reads them from ``schema/``."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "tkserver" / "schema"
            self.mkpath(str(target))
            for migration in Path("schema").glob("*.sql"):
                self.copy_file(str(migration), str(target / migration.name))


def absolute_links(text, repository):
    """Return Markdown whose relative links point to a repository, because a package index does not have the files.

    :param repository: the URL; ``None`` returns the text unchanged.
    """
    if repository is None:
        return text
    parts = re.split(r"(?ms)(^```.*?^```$)", text)  # every second part is a block of code
    for number in range(0, len(parts), 2):
        parts[number] = re.sub(r"\]\((?![a-z]+:|#)([^)\s]+)\)", rf"]({repository}/blob/HEAD/\1)", parts[number])
    return "".join(parts)


def repository_url(pyproject):
    """Return the URL of the repository in the text of ``pyproject.toml``; ``None`` if there is none."""
    match = re.search(r'(?mi)^(?:repository|source) = "(https://[^"]+?)/?"$', pyproject)
    return match and match[1]


if __name__ == "__main__":  # the tests import this module
    setup(
        long_description=absolute_links(
            Path("README.md").read_text(encoding="utf-8"),
            repository_url(Path("pyproject.toml").read_text(encoding="utf-8")),
        ),
        long_description_content_type="text/markdown",
        # find_packages() omits twisted.plugins, because it has no __init__.py. Do not add one: it would shadow Twisted.
        packages=[*find_packages(include=["tkserver", "tkserver.*"]), "twisted.plugins"],
        # Without package_dir, an editable install of a flat layout hides the plug-in from twistd.
        package_dir={"": "."},
        package_data={
            "tkserver": ["py.typed", "examples/*.sh", "web/dashboard/templates/*.html", "web/dashboard/static/*"]
        },
        cmdclass={"build_py": BuildWithSchema},
    )
