#!/usr/bin/env bash
# The tests of `sdrt serve` with the clients that people use. Needs Python 3 and target/release/sdrt.
set -euo pipefail
cd "$(dirname "$0")"

venv=../../target/test-clients
if ! cmp --silent requirements.txt "$venv/requirements.txt"; then
    "${PYTHON:-python3}" -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement requirements.txt
    cp requirements.txt "$venv/requirements.txt"
fi
exec "$venv/bin/pytest" -p no:cacheprovider "$@" .
