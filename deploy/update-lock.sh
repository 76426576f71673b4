#!/bin/sh
# Lock the packages that deploy/Dockerfile installs, at the newest versions that pyproject.toml allows.
# The result depends on the version of Python, so the interpreter must have the version of the image. PYTHON names it.
set -eu
cd "$(dirname "$0")/.."

version=$(sed -n 's/^FROM python:\([0-9.]*\)-slim$/\1/p' deploy/Dockerfile)
python=${PYTHON:-python$version}
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
"$python" -c "import sys; sys.exit(0 if '%d.%d' % sys.version_info[:2] == '$version' else 'Python $version is needed')"
"$python" -m venv "$environment"
"$environment/bin/pip" install --quiet --disable-pip-version-check 'pip-tools>=7.6'

# The tests install the locked packages with any version of Python that the project supports.
echo 'numpy<2.3' > "$environment/constraints"

# lock FILE CONTENT OPTION...
lock() {
    file=$1
    printf '# %s, locked for Python %s.\n# Do not edit. To update: deploy/update-lock.sh\n\n' "$2" "$version" > "$environment/lock"
    shift 2
    "$environment/bin/pip-compile" --quiet --generate-hashes --strip-extras --allow-unsafe --annotation-style line \
        --no-header --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --constraint "$environment/constraints" \
        --output-file - "$@" pyproject.toml \
        > "$environment/packages"
    sed 's/-c [^ ]*constraints, //; /^$/d; /^# The following packages are considered to be unsafe/d' "$environment/packages" >> "$environment/lock"
    cp "$environment/lock" "$file"
}
lock deploy/build-requirements.lock 'Packages that build the server' --only-build-deps --build-deps-for wheel
lock deploy/requirements.lock 'Packages that the image contains' --extra redis
