#!/bin/sh
# Measures rows of the performance table beside the bare pipeline, and prints the table: sh deploy/bench/run.sh [ROW…] (--help)
set -eu
cd "$(dirname "$0")/../.."
. deploy/setup.sh
setup_venv dev
exec python -m deploy.bench.run "$@"
