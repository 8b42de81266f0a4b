#!/bin/bash
# An older CPU, emulated: without AVX2 the portable kernels are chosen, and the answer is the
# same bits as here.  Usage: tests/old_cpu.sh BIN_DIR
set -u
cd "$(dirname "$0")/.." || exit 2
bin=$(realpath "$1")
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
fail() { echo "old CPU: $1"; exit 1; }
command -v qemu-x86_64 >/dev/null || fail 'qemu-x86_64 is missing: run deploy/install-debian.sh'

"$bin/polymath" synth --preset m2-tiny --set num_hidden_layers=2 --seed 3 --no-tokenizer \
    --out "$dir/model" >/dev/null || fail 'synth failed'
old="qemu-x86_64 -cpu Nehalem $bin/polymath"
if $old logits --model "$dir/model" --ids 1 --kernels avx2 --out "$dir/x" >"$dir/log" 2>&1; then
    fail 'a CPU without AVX2 took --kernels avx2'
fi
grep -q 'not for this CPU' "$dir/log" || fail "no clear refusal: $(cat "$dir/log")"
for format in native q8 q4; do
    for where in here old; do
        run="$bin/polymath"
        [ $where = old ] && run=$old
        $run logits --model "$dir/model" --ids 5,17,9,200 --format $format --threads 1 \
            --out "$dir/$where.$format" >"$dir/log" 2>&1 || fail "$where, $format: $(cat "$dir/log")"
    done
    cmp "$dir/here.$format" "$dir/old.$format" || fail "$format: other bits"
    echo "old CPU: $format, the same $(stat -c %s "$dir/here.$format") bytes"
done
