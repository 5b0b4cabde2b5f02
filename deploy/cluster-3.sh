#!/bin/sh
# A local cluster of 3 brokers on ports 7700 to 7702, its data in .clusters/3 of the checkout.
#   sh deploy/cluster-3.sh                       start it, or what is not running of it
#   sh deploy/cluster-3.sh status|stop|kill b2|pause b2|resume b2
set -eu
cd "$(dirname "$0")/.."
. deploy/setup.sh
setup_venv run

verb=${1:-start}
[ $# -eq 0 ] || shift
if [ "$verb" = start ]; then
    exec streamq cluster start --data .clusters/3 --brokers 3 --port 7700 "$@"
fi
exec streamq cluster "$verb" --data .clusters/3 "$@"
