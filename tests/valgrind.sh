#!/bin/bash
# The tiny model under memcheck: the single process, then a coordinator with embedded
# attention and two expert nodes answering one request.  Any error or definite leak fails.
set -u
cd "$(dirname "$0")/.." || exit 2
bin=$(realpath "$1")
dir=$(mktemp -d)
# Valgrind runs one thread at a time: in turn, so that whoever computes keeps no connection waiting.
check="valgrind -q --fair-sched=try --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite"
pids=''
stop() {
    [ -z "$pids" ] || kill -TERM $pids 2>/dev/null
    wait 2>/dev/null
    rm -rf "$dir"
}
trap stop EXIT
fail() { echo "valgrind: $1"; cat "$dir"/*.log 2>/dev/null | tail -n 60; exit 1; }

"$bin/polymath" synth --preset m2-tiny --set num_hidden_layers=2 --seed 3 --out "$dir/model" ||
    fail 'synth failed'
$check "$bin/polymath" generate --model "$dir/model" --ids 5,17,9 --max-tokens 4 \
    --temperature 0.7 --seed 1 --print-ids >"$dir/generate.log" 2>&1 || fail 'polymath generate'

cd "$dir" || exit 2
common="--set model.path=$dir/model"
$check "$bin/coordinator" $common --set http.port=0 --set cluster.listen=ipc://c.sock \
    --set attention.kv_bytes=16MiB --set attention.threads=1 --set cluster.lease_ms=60000 \
    --set attention.call_timeout_ms=60000 >coordinator.log 2>&1 &
coordinator=$!
pids=$coordinator
for i in 0 1; do
    $check "$bin/expert_node" $common --set node.name=expert-$i --set node.listen=ipc://e$i.sock \
        --set coordinator.endpoint=ipc://c.sock --set compute.threads=1 >expert-$i.log 2>&1 &
    pids="$pids $!"
done
url=''
for _ in $(seq 600); do
    kill -0 $coordinator 2>/dev/null || fail 'the coordinator ended'
    url=$(sed -n 's/.*ev=http.ready url=\([^ ]*\).*/\1/p' coordinator.log)
    [ -n "$url" ] && curl -sf "$url/ready" >/dev/null && break
    sleep 0.5
done
answer=$(curl -s "$url/v1/completions" -d '{"prompt":[5,17,9],"max_tokens":4}')
case $answer in *'"text_completion"'*) ;; *) fail "no answer: $answer" ;; esac
kill -TERM $pids
for pid in $pids; do
    wait "$pid"
    rc=$?
    [ $rc -eq 0 ] || fail "a process ended with $rc"
done
pids=''
echo 'valgrind: clean'
