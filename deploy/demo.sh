#!/bin/sh
# Shows what streamq is for, on a machine with Python alone: three brokers, real text going in, one broker killed in the middle, and
# everything that was acked read back. Ends with 0 if not a byte is missing. Leaves nothing behind but .venv (and .demo, if it failed).
set -eu
cd "$(dirname "$0")/.."
root=$PWD
demo=$root/.demo
# Not even bytecode is written outside of the checkout.
export PYTHONPYCACHEPREFIX="$root/.venv/bytecode"
unset STREAMQ_BOOTSTRAP STREAMQ_PROFILE STREAMQ_DATA STREAMQ_PORT 2>/dev/null || true

. deploy/setup.sh
setup_venv run

producer=
clean_up() {
    status=$?
    trap - EXIT INT TERM HUP
    [ -z "$producer" ] || kill "$producer" 2>/dev/null || true
    if [ -e "$demo/cluster/cluster.json" ]; then
        streamq cluster kill --all --data "$demo/cluster" >/dev/null 2>&1 || true
    fi
    if [ "$status" -eq 0 ]; then
        rm -rf "$demo"
    else
        echo "the demo failed; the brokers' logs are in $demo/cluster/b*/broker.log" >&2
    fi
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

if [ -e "$demo/cluster/cluster.json" ]; then
    streamq cluster kill --all --data "$demo/cluster" >/dev/null 2>&1 || true
fi
rm -rf "$demo"
mkdir -p "$demo"

say() { printf '\n== %s\n' "$*"; }

say "collecting real text: this machine's logs, and the sources of Python's library"
lines=$(python deploy/demo_text.py "$demo/input.txt" 400000)
echo "$lines lines, $(wc -c <"$demo/input.txt" | tr -d ' ') bytes"

say "starting three brokers"
port=$(python -c 'from streamq.cli.local_cluster import free_ports; print(free_ports(3))')
streamq cluster start --brokers 3 --data "$demo/cluster" --port "$port"
STREAMQ_BOOTSTRAP="127.0.0.1:$port,127.0.0.1:$((port + 1)),127.0.0.1:$((port + 2))"
export STREAMQ_BOOTSTRAP
streamq topic create text

say "producing in the background, spread over about 12 seconds"
streamq produce text "$demo/input.txt" --rate $((lines / 12)) --receipts "$demo/receipts" -o json 2>"$demo/summary" &
producer=$!
sleep 4

sequencer=$(streamq topic describe text -o json | python -c 'import json, sys; print(json.load(sys.stdin)["partition_list"][0]["sequencer"])')
say "SIGKILL for $sequencer, which assigns the offsets, after $(wc -l <"$demo/receipts" | tr -d ' ') acked records"
streamq cluster kill "$sequencer" --data "$demo/cluster"

sleep 3
say "meanwhile: the committed offset, read from R = 2 replicas while one broker is dead"
streamq topic describe text

wait "$producer" || { cat "$demo/summary" >&2; exit 1; }
producer=
say "the producer is done"
cat "$demo/summary"
pause=$(python -c 'import json, sys; print(round(json.load(sys.stdin)["longest_gap_s"] * 1000))' <"$demo/summary")

say "reading everything back, with $sequencer still dead"
streamq tail text --from start --exit-at-end >"$demo/output.txt"
read_back=$(wc -l <"$demo/output.txt" | tr -d ' ')
sent_sum=$(cksum <"$demo/input.txt")
read_sum=$(cksum <"$demo/output.txt")
echo "sent  $lines lines, checksum $sent_sum"
echo "read  $read_back lines, checksum $read_sum"
[ "$lines" = "$read_back" ] && [ "$sent_sum" = "$read_sum" ] || { echo "what came back is not what went in" >&2; exit 8; }
[ "$lines" -ge 200000 ] || { echo "only $lines lines were found" >&2; exit 1; }

say "the killed broker comes back"
streamq cluster start --data "$demo/cluster" >/dev/null
streamq cluster status --data "$demo/cluster"

say "stopping"
streamq cluster stop --data "$demo/cluster"

cat <<END

Nothing is lost: $lines lines went in, a broker was killed meanwhile, the same $lines lines came out.
The longest pause that the producer saw was $pause ms.

Try next:
  . .venv/bin/activate
  streamq dev                                  # a cluster in this terminal
  streamq topic create orders --partitions 6   # and in another one
  streamq produce orders < README.md
  streamq tail orders -f
END
