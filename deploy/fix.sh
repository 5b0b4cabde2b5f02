#!/bin/sh
# Mends what the style check can mend by itself.
set -eu
cd "$(dirname "$0")/.."
. deploy/setup.sh
setup_venv dev
ruff check --fix .
ruff format .
