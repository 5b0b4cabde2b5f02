#!/bin/sh
# Style, types and import contracts, without running anything: what has to be clean before tests count.
set -eu
cd "$(dirname "$0")/.."
. deploy/setup.sh
setup_venv dev

failed=
ruff check . || failed="$failed ruff-check"
ruff format --check --quiet . || failed="$failed ruff-format"
mypy || failed="$failed mypy"
lint-imports >.venv/lint-imports.log 2>&1 || { cat .venv/lint-imports.log; failed="$failed lint-imports"; }
if [ -n "$failed" ]; then
    echo "check failed:$failed (sh deploy/fix.sh mends style)" >&2
    exit 1
fi
echo "check passed: style, types, import contracts"
