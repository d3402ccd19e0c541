#!/usr/bin/env bash
# tools/pytest.sh REQUIREMENTS.txt FOLDER [OPTION...]: runs the tests in a virtual environment below target/.
set -euo pipefail
cd "$(dirname "$0")/.."

requirements=$1
shift
venv=target/venvs/$(dirname "$requirements")
[ -x "$venv/bin/pip" ] || "${PYTHON:-python3}" -m venv --clear "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements"
exec "$venv/bin/python" -m pytest -p no:cacheprovider "$@"
