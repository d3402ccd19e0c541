#!/usr/bin/env bash
# tools/pytest.sh REQUIREMENTS.txt [FOLDER [OPTION...]]: runs tests in a virtual environment below target/; without a
# folder makes the environment and runs nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

requirements=$1
shift
venv=target/venvs/$(dirname "$requirements")
[ -x "$venv/bin/pip" ] || "${PYTHON:-python3}" -m venv --clear "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements"
[ $# -gt 0 ] || exit 0
exec "$venv/bin/python" -m pytest -p no:cacheprovider "$@"
