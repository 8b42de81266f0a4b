#!/bin/bash
# run.sh BIN_DIR [OPTION]... - the long form of the cluster tests: scenarios of `polymath chaos`
#
#   hosts     all, each process on a host of its own (network namespaces behind a switch in user
#             space, 0.2 ms round trips over tcp, with loss, delay and partitions), a tiny model
#   geometry  those that depend on how long a step takes, on hosts again, with two layers of M2's
#             true size (4 GiB of random q4 weights, made for the run)
#   local     all that can be, on this host over ipc sockets
#
# What goes on and on, or is repeated until its figure is more than noise, does so for 90 seconds.
# OPTIONs go to `polymath chaos`, such as --seconds 300.  LANES='hosts local' chooses, LIMIT_S is
# the most seconds that a lane may take (1800; long --seconds want more).
# What this machine cannot do is skipped, and says so.  Everything is gone afterwards, also when
# interrupted: namespaces and interfaces end with their processes, processes with this script.
#
# A line appears when a scenario ends, and on stderr every few seconds what is going on.  Closes
# with all results as a Markdown table, as it stands in the README, and "N passed, N failed,
# N skipped"; exit code 1 if a promise was not kept.
set -u
bin=$1
shift
lanes=${LANES:-hosts geometry local}
limit_s=${LIMIT_S:-1800}
work=$(mktemp -d "${TMPDIR:-/tmp}/polymath-cluster-XXXXXX") || exit 1
child=''
passed=0 failed=0 skipped=0

tidy() {
    [ -z "$child" ] || kill "$child" 2>/dev/null
    [ -z "$child" ] || wait "$child" 2>/dev/null
    rm -rf "$work"
}
trap tidy EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# In the background, so that a signal is seen at once; its exit code, 124 after too long a time.
# timeout(1) passes signals on, and chaos ends its processes when it gets one.
run() {
    timeout --kill-after=30 "$limit_s" "$@" &
    child=$!
    wait "$child"
    local code=$?
    child=''
    return $code
}

skip() {
    echo "skipped: $1"
    skipped=$((skipped + 1))
}

# Shows the lines of a table as they come and keeps them for counting.
chaos() {
    local code kept missed not
    : >"$work/table"
    tail -n +1 -f --pid=$$ "$work/table" 2>/dev/null &
    local shown=$!
    run "$bin/polymath" chaos --rows "$work/rows" --seconds 90 "$@" >"$work/table"
    code=$?
    sleep 0.2
    kill "$shown" 2>/dev/null
    wait "$shown" 2>/dev/null
    [ "$code" -ne 124 ] || echo "this lane took longer than $limit_s s (LIMIT_S)"
    kept=$(grep -cE ' kept$' "$work/table")
    missed=$(grep -cE ' (MISSED|BROKEN): ' "$work/table")
    not=$(grep -cE ' skipped: ' "$work/table")
    [ "$code" -eq 0 ] || [ "$missed" -gt 0 ] || missed=1
    passed=$((passed + kept)) failed=$((failed + missed)) skipped=$((skipped + not))
}

why=''
[ "$(id -u)" -eq 0 ] || why='not root'
[ -n "$why" ] || [ -w /dev/net/tun ] || why='no /dev/net/tun'
[ -n "$why" ] || unshare --net true 2>/dev/null || why='network namespaces are not permitted'

hosts_lane() {
    if [ -n "$why" ]; then skip "$why"; else chaos --hosts "$@"; fi
}

geometry_lane() {
    local memory_kb disk_kb
    memory_kb=$(awk '/^MemAvailable/ { print $2 }' /proc/meminfo)
    disk_kb=$(df --output=avail -k "$work" | tail -1)
    if [ -n "$why" ]; then
        skip "$why"
    elif [ "$memory_kb" -lt $((9 << 20)) ] || [ "$disk_kb" -lt $((6 << 20)) ]; then
        skip 'needs 9 GiB of free memory and 6 GiB of disk'
    elif run "$bin/polymath" synth --preset m2-layers-2 --vocab 12800 --packed q4 --no-tokenizer \
        --out "$work/model"; then
        chaos --hosts --model "$work/model" --tokens 32 --scenario \
            kill,stop,blackhole,partition,loss,delay,join,drain,roll,roll-attention,storage "$@"
        rm -rf "$work/model"
    else
        failed=$((failed + 1))
    fi
}

local_lane() {
    chaos "$@"
}

declare -A about=(
    [hosts]='each process on a host of its own, a tiny model'
    [geometry]='on hosts of their own, two layers of the true size'
    [local]='all on this host, over ipc sockets')
for lane in $lanes; do
    if [ -z "${about[$lane]:-}" ]; then
        echo "run.sh: no lane is named '$lane'" >&2
        exit 2
    fi
done
: >"$work/rows"
for lane in $lanes; do
    echo "== $lane: ${about[$lane]}"
    echo "| **$lane**: ${about[$lane]} | | | | | | |" >>"$work/rows"
    "${lane}_lane" "$@"
done
echo
# shellcheck disable=SC2016
echo '| what happens (`--scenario`) | longest gap | allowed | full redundancy after | lost | other tokens | |'
echo '|---|---|---|---|---|---|---|'
cat "$work/rows"
echo
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
