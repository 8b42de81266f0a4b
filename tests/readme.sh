#!/bin/bash
# Does what README.md says: `make run`, then the first chat with curl.  Uses port 8080 as a
# reader would; ends what it started.
set -u
cd "$(dirname "$0")/.." || exit 2
log=$(mktemp)
setsid make run >"$log" 2>&1 &
runner=$!
trap 'kill -TERM -- -$runner 2>/dev/null; wait $runner 2>/dev/null; rm -f "$log"' EXIT

for _ in $(seq 600); do
    curl -sf localhost:8080/ready >/dev/null && break
    kill -0 $runner 2>/dev/null || { cat "$log"; echo 'make run ended early'; exit 1; }
    sleep 0.5
done
answer=$(curl -s localhost:8080/v1/chat/completions \
    -d '{"messages":[{"role":"user","content":"Hello"}],"max_tokens":16}')
echo "$answer"
case $answer in
*'"chat.completion"'*'"completion_tokens"'*) ;;
*) cat "$log"; echo 'no chat completion came back'; exit 1 ;;
esac
# The first question that make run asks by itself is answered, too.
for _ in $(seq 40); do
    grep -q '^> Hello' "$log" && exit 0
    sleep 0.5
done
cat "$log"
echo 'make run did not ask its first question'
exit 1
