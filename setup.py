"""Parts of the build that pyproject.toml cannot express."""

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


setup(
    # find_packages() omits twisted.plugins, because it has no __init__.py. Do not add one: it would shadow Twisted.
    packages=[*find_packages(include=["tkserver", "tkserver.*"]), "twisted.plugins"],
    # Without package_dir, an editable install of a flat layout hides the plug-in from twistd.
    package_dir={"": "."},
    package_data={"tkserver": ["py.typed", "examples/*.sh"]},
    cmdclass={"build_py": BuildWithSchema},
)
