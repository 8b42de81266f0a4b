#!/bin/bash
# run.sh SECONDS TARGET... - libFuzzer over tests/fuzz/fuzz_TARGET.c, SECONDS for each.
#
# One line per target; exit 1 if any crashed.  A crashing input is kept in
# build/fuzz/crashes/TARGET-*; run build/fuzz/bin/fuzz_TARGET FILE to see it again.  The
# corpus is copied first: a run never writes into the repository.
set -u
cd "$(dirname "$0")/../.." || exit 2
if [ $# -lt 2 ] || ! [ "$1" -gt 0 ] 2>/dev/null; then
    echo "usage: tests/fuzz/run.sh SECONDS TARGET..." >&2
    exit 2
fi
if ! command -v clang >/dev/null; then
    echo 'fuzz: clang is missing' >&2
    exit 1
fi
seconds=$1
shift
crashes=build/fuzz/crashes
mkdir -p "$crashes"
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

make --no-print-directory -s V=fuzz CC=clang "${@/#/build/fuzz/bin/fuzz_}" || exit 1

# $1: a word of libFuzzer's last status line ("cov:", "ft:"); its last value in the log.
figure() { grep -oE "$1 [0-9]+" "$2" | tail -n 1 | grep -oE '[0-9]+$' || echo 0; }

bad=0
for target; do
    corpus=$work/$target log=$work/$target.log
    mkdir "$corpus"
    [ ! -d "tests/fuzz/corpus/$target" ] || cp -r "tests/fuzz/corpus/$target/." "$corpus/"
    before=$(find "$corpus" -type f | wc -l)
    (cd "$work" && exec "$OLDPWD/build/fuzz/bin/fuzz_$target" "$corpus" -seed=$RANDOM \
        -max_total_time="$seconds" -max_len=65536 -timeout=10 -rss_limit_mb=2048 \
        -print_final_stats=1 -artifact_prefix="$OLDPWD/$crashes/$target-") >"$log" 2>&1
    status=$?
    runs=$(figure 'stat::number_of_executed_units:' "$log")
    found=$(($(find "$corpus" -type f | wc -l) - before))
    first=$(grep -m 1 -oE 'INITED cov: [0-9]+' "$log" | grep -oE '[0-9]+$')
    last=$(figure 'cov:' "$log")
    printf '%-12s %9d executions, coverage %d to %d, %d new inputs%s\n' "$target" "$runs" \
        "${first:-0}" "$last" "$found" "$([ $status = 0 ] || echo ": CRASHED ($status)")"
    if [ $status != 0 ]; then
        bad=1
        tail -n 60 "$log"
    fi
done
exit $bad
