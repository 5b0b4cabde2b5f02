#!/bin/sh
# Checks and tests everything on a machine that has only Python 3.11 or newer. Arguments go to pytest: sh deploy/test.sh -k quorum
set -eu
cd "$(dirname "$0")/.."
. deploy/setup.sh
setup_venv dev
sh deploy/check.sh
exec python -m pytest "$@"
