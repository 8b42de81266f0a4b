#!/bin/bash
# House rules a compiler cannot check.  Prints offending lines; exit 1 if any.
cd "$(dirname "$0")/../.." || exit 2
bad=0
say() { [ -z "$2" ] || { printf '%s\n%s\n' "lint: $1" "$2"; bad=1; }; }
rooms='base model engine rpc coordinator attn_node expert_node tools'
# shellcheck disable=SC2086
src() { grep -rnE --include='*.[ch]' "$1" $rooms 2>/dev/null; }

# Who may include whom.  "a: b c" lets files of a/ include a/, b/ and c/.
while IFS=: read -r from may; do
    allow=$(printf '%s' "$from$may" | tr -s ' ' '|')
    say "$from/ reaches outside ($allow)" \
        "$(src '^#include "' | grep "^$from/" | grep -vE "#include \"($allow)/")"
done <<RULES
base:
model: base
engine: base model
rpc: base proto model
coordinator: base model rpc attn_node
attn_node: base model engine rpc
expert_node: base model engine rpc
tools: base model engine rpc coordinator attn_node
RULES
say 'the coordinator sees more of the attention side than its door' \
    "$(src '#include "attn_node/' | grep '^coordinator/' | grep -v '"attn_node/side.h"')"
say 'a tool sees more of coordinator and attention side than placement and choice' \
    "$(src '#include "(coordinator|attn_node)/' | grep '^tools/' |
       grep -vE '"(coordinator/placement|coordinator/placement_plan|attn_node/choice)\.h"')"
say 'the coordinator touches tensors' \
    "$(src '#include "model/(tensor|weights|safetensors)\.h"' | grep '^coordinator/')"

# Things that live in one room only.
only() { say "$1 outside $3" "$(src "$2" | grep -vE "^($3)")"; }
only protobuf    'pb-c\.h"'                        'rpc/wire_'
only zeromq      '<zmq\.h>'                        'rpc/(link|loop|auth|key)\.c'
only mutexes     'pthread_(mutex|cond)_'           'base/(queue|log|thread|blob)\.|engine/pool\.'
only 'the clock' 'clock_gettime|gettimeofday|[^a-z_]time\(NULL' 'base/clock\.c'
only cblas       'cblas_[a-z]+\(|<cblas'                          'engine/gemm\.c'
only microhttpd  '<microhttpd\.h>'                 'coordinator/http\.c'

# Pure modules take time in their arguments and give actions back.
pure='engine/|coordinator/(request|sched|members|lending|placement|leader|ship|follow|records|token_log)\.|attn_node/(round|round_plan|round_sum|round_check|round_books|choice|pace|verify)\.|coordinator/placement_plan\.|expert_node/(batch|fault)\.'
say 'a pure module reaches for the world' \
    "$(src '^#include "(base/(log|clock|conf|queue)|rpc/(link|loop|member|channel|server))\.h"' |
       grep -E "^($pure)")"
say 'forbidden call' "$(src '[^a-z_](strcpy|strcat|sprintf|gets|getenv|alloca)\(')"
say 'a TODO needs an issue, not a comment' "$(src 'TODO|FIXME|[^X]XXX[^X]')"

# Size: one file is one idea.  Tables and SIMD are excepted.
# shellcheck disable=SC2086
say 'file over 1,000 lines' "$(find $rooms tests -name '*.[ch]' ! -name 'kernels_*' ! -name '*_table*' \
    -exec awk 'END { if (NR > 1000) print FILENAME ": " NR }' {} \;)"

# Every header compiles alone, and twice.
check_header() {
    printf '#include "%s"\n#include "%s"\n' "$1" "$1" |
        cc -std=c11 -D_GNU_SOURCE -I. -fsyntax-only -Wall -Werror -x c - ||
        echo "lint: $1 does not stand alone"
}
export -f check_header
# shellcheck disable=SC2086
say 'headers' "$(find $rooms tests/lib -name '*.h' -print0 2>/dev/null |
    xargs -0 -P 2 -I{} bash -c 'check_header {}' 2>&1)"

# Formatting, where clang-format is installed.
if command -v clang-format >/dev/null; then
    # shellcheck disable=SC2086
    say 'not formatted (make format)' "$(find $rooms tests -name '*.[ch]' -print0 |
        xargs -0 clang-format --dry-run 2>&1 | grep -E 'warning|error' | head -n 10)"
fi
exit $bad
