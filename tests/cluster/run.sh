#!/bin/bash
# run.sh BIN_DIR [OPTION]... - the long form of the cluster tests: scenarios of `polymath chaos`
#
#   hosts     all, each process on a host of its own (network namespaces behind a switch in user
#             space, 0.2 ms round trips over tcp, with loss, delay and partitions), a tiny model
#   geometry  those that need hosts or kill, on hosts again, with two layers of M2's true size (4 GiB of
#             random q4 weights, made for the run)
#   local     all that can be, on this host over ipc sockets
#
# OPTIONs go to `polymath chaos`, such as --seconds 120.  LANES='hosts local' chooses.  What this
# machine cannot do is skipped, and says so.  Everything is gone afterwards, also when
# interrupted: namespaces and interfaces end with their processes, processes with this script.
# Closes with "N passed, N failed, N skipped"; exit code 1 if a promise was not kept.
set -u
bin=$1
shift
lanes=${LANES:-hosts geometry local}
work=$(mktemp -d /tmp/polymath-cluster-XXXXXX) || exit 1
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

# In the background, so that a signal is seen at once; its exit code.
run() {
    "$@" &
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

# Counts the verdicts of a table, and a run that did not even get so far.
chaos() {
    run "$bin/polymath" chaos "$@" >"$work/table"
    local code=$? kept missed not
    cat "$work/table"
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
    echo '== hosts: each process on a host of its own, a tiny model'
    if [ -n "$why" ]; then skip "$why"; else chaos --hosts "$@"; fi
}

geometry_lane() {
    echo '== geometry: on hosts of their own, two layers of the true size'
    local memory_kb disk_kb
    memory_kb=$(awk '/^MemAvailable/ { print $2 }' /proc/meminfo)
    disk_kb=$(df --output=avail -k "$work" | tail -1)
    if [ -n "$why" ]; then
        skip "$why"
    elif [ "$memory_kb" -lt $((9 << 20)) ] || [ "$disk_kb" -lt $((6 << 20)) ]; then
        skip 'needs 9 GiB of free memory and 6 GiB of disk'
    elif run "$bin/polymath" synth --preset m2-layers-2 --vocab 12800 --packed q4 --no-tokenizer \
        --out "$work/model" >"$work/synth" 2>&1; then
        chaos --hosts --model "$work/model" --tokens 32 \
            --scenario kill,stop,blackhole,partition,loss,delay,drain,storage "$@"
        rm -rf "$work/model"
    else
        cat "$work/synth"
        failed=$((failed + 1))
    fi
}

local_lane() {
    echo '== local: all on this host, over ipc sockets'
    chaos "$@"
}

for lane in $lanes; do
    case $lane in
    hosts | geometry | local) "${lane}_lane" "$@" ;;
    *)
        echo "run.sh: no lane is named '$lane'" >&2
        exit 2
        ;;
    esac
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
