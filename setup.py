"""Packaging. The metadata is in pyproject.toml; what it cannot say is here."""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class BuildWithSchema(build_py):
    """Puts the migrations, which lie beside the package, into it; in an editable install they stay where they are."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "tkserver" / "schema"
            self.mkpath(str(target))
            for migration in Path("schema").glob("*.sql"):
                self.copy_file(str(migration), str(target / migration.name))


setup(
    # No finder takes twisted.plugins for a package: it has no __init__.py, for that would shadow Twisted.
    packages=[*find_packages(include=["tkserver", "tkserver.*"]), "twisted.plugins"],
    package_dir={"": "."},
    package_data={"tkserver": ["py.typed", "examples/*.sh"]},
    cmdclass={"build_py": BuildWithSchema},
)
