#!/bin/sh
# Checks and tests everything on a machine that has only Python 3.11 or newer. Arguments go to pytest: sh deploy/test.sh -k quorum
set -eu
cd "$(dirname "$0")/.."
. deploy/setup.sh
setup_venv dev
sh deploy/check.sh
if [ $# -gt 0 ]; then
    exec python -m pytest "$@"
fi

# Two at a time: tests that start processes mostly wait for them, the others take one core.
processes="tests/integration tests/nemesis tests/packaging tests/testing"
log=.venv/test-processes.log
# shellcheck disable=SC2086 # a list of folders
python -m pytest --durations=25 $processes >"$log" 2>&1 &
beside=$!
trap 'kill "$beside" 2>/dev/null || true' EXIT
failed=0
# shellcheck disable=SC2046
python -m pytest --durations=25 $(printf -- '--ignore=%s ' $processes) || failed=$?
wait "$beside" || failed=$?
cat "$log"
exit "$failed"
