#!/bin/sh
# A local cluster of 5 brokers on ports 7710 to 7714, its data in .clusters/5 of the checkout.
#   sh deploy/cluster-5.sh                       start it, or what is not running of it
#   sh deploy/cluster-5.sh status|stop|kill b2|pause b2|resume b2
set -eu
cd "$(dirname "$0")/.."
. deploy/setup.sh
setup_venv run

verb=${1:-start}
[ $# -eq 0 ] || shift
if [ "$verb" = start ]; then
    exec streamq cluster start --data .clusters/5 --brokers 5 --port 7710 "$@"
fi
exec streamq cluster "$verb" --data .clusters/5 "$@"
