#!/bin/sh
# Profiles as files: trikvctl profile check, show, diff, and a calibration that is broken off and
# taken up again. Ends with "N passed, M failed".
set -u

bin=${TRIKV_BUILD:-build}/bin
ref=conf/profiles/trikv-ref-6m.yaml
large=conf/profiles/qwen3-8b.yaml
n_passed=0
n_failed=0

ctl() {
    "$bin/trikvctl" profile "$@"
}

calibrate() {
    "$bin/trikv-calibrate" --model models/trikv-ref-6m.gguf --text models/data/heldout.txt "$@"
}

tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT

# expect STATUS PATTERN COMMAND...: its exit status, and a line of its output, unless PATTERN
# is empty.
expect() {
    want=$1
    pattern=$2
    shift 2
    "$@" >"$tmp/out" 2>&1
    status=$?
    if [ "$status" -eq "$want" ] &&
        { [ -z "$pattern" ] || grep -q -e "$pattern" "$tmp/out"; }; then
        n_passed=$((n_passed + 1))
    else
        echo "FAIL: $*: status $status, want $want with '$pattern'; got:"
        head -n 5 "$tmp/out"
        n_failed=$((n_failed + 1))
    fi
}

# Fits, or the field that does not is named.
expect 0 "$large: sound$" ctl check "$ref" "$large"
expect 0 'sound, fits' ctl check "$ref" --model models/trikv-ref-6m.gguf
expect 1 'n_layers: the profile has 36, the model 6' ctl check "$large" \
    --model models/trikv-ref-6m.gguf
expect 0 'sound, fits' ctl check "$large" --n-layers 36 --n-q-heads 32 --n-kv-heads 8 \
    --head-dim 128 --rope-theta 1e6
expect 1 'n_kv_heads: ' ctl check "$large" --n-kv-heads 4
expect 1 'n_q_heads: ' ctl check "$large" --n-q-heads 64
expect 1 'head_dim: ' ctl check "$large" --head-dim 64
expect 1 'rope.theta: the profile has 1000000' ctl check "$large" --rope-theta 10000
expect 1 'fingerprint: ' ctl check "$ref" --fingerprint xxh3:0000000000000000
expect 1 'none.gguf' ctl check "$ref" --model none.gguf
expect 64 'which files' ctl check
expect 64 'want check' ctl frobnicate
expect 64 'one file' ctl show

# The same model, with something changed that only a model file can tell.
sed 's/^  theta: .*/  theta: 10000/' "$ref" >"$tmp/trikv-ref-6m.yaml"
expect 1 'rope.theta' ctl check "$tmp/trikv-ref-6m.yaml" --model models/trikv-ref-6m.gguf
sed 's/^  layout: .*/  layout: interleaved/' "$ref" >"$tmp/trikv-ref-6m.yaml"
expect 1 'rope.layout' ctl check "$tmp/trikv-ref-6m.yaml" --model models/trikv-ref-6m.gguf
sed 's/^    budget: .*/    budget: 132/' "$ref" >"$tmp/trikv-ref-6m.yaml"
expect 1 'budget: 132 tokens, want more than pinned 4 + recent 128' ctl check \
    "$tmp/trikv-ref-6m.yaml"

# Statistics beside the profile: cut off, changed, missing.
cp "$large" "$tmp/qwen3-8b.yaml"
expect 1 'statistics.file: cannot open' ctl check "$tmp/qwen3-8b.yaml"
head -c 884735 conf/profiles/qwen3-8b.stats >"$tmp/qwen3-8b.stats"
expect 1 'want exactly 884736 bytes, got fewer' ctl check "$tmp/qwen3-8b.yaml"
printf 'x' >>"$tmp/qwen3-8b.stats"
expect 1 'statistics.xxh3' ctl check "$tmp/qwen3-8b.yaml"

# What is shown.
expect 0 '^query heads *4$' ctl show "$ref"
expect 0 '^ *1  *91  *85' ctl show "$ref" --heads
expect 0 '"r_by_head": \[\[0\.' ctl show "$ref" --json
expect 0 'layers' ctl show "$large" --svg "$tmp/picture.svg"
# A cell a layer and band, and a cell a layer and head.
expect 0 "^$((36 * 64 + 36 * 32))$" grep -c '<rect class="c"' "$tmp/picture.svg"
expect 0 '</svg>' tail -n 1 "$tmp/picture.svg"
expect 1 '' grep -c -e nan -e inf "$tmp/picture.svg"

# What differs.
cp "$ref" "$tmp/trikv-ref-6m.yaml"
expect 0 '' ctl diff "$ref" "$tmp/trikv-ref-6m.yaml"
expect 1 'n_layers *6 -> 36' ctl diff "$ref" "$large"
sed 's/budget: 2048/budget: 1024/' "$ref" >"$tmp/trikv-ref-6m.yaml"
expect 1 'budget *2048 -> 1024' ctl diff "$ref" "$tmp/trikv-ref-6m.yaml"

# A calibration that is broken off leaves its state, which is for the same work only.
long() {
    calibrate --tokens 200k --context 256 --state "$tmp/state" --output "$tmp/b.yaml" "$@"
}
"$bin/trikv-calibrate" --model models/trikv-ref-6m.gguf --text models/data/heldout.txt \
    --tokens 200k --context 256 --state "$tmp/state" --output "$tmp/b.yaml" >/dev/null 2>&1 &
tries=0
until [ -e "$tmp/state" ] || [ $tries -eq 200 ]; do
    tries=$((tries + 1))
    sleep 0.1
done
kill -9 $! 2>/dev/null
wait $! 2>/dev/null
expect 0 'state' ls "$tmp/state"
cp "$tmp/state" "$tmp/kept"
expect 1 'another text' long --tokens 2000
expect 1 'made with --context 256' long --context 128
printf 'x' | dd of="$tmp/state" bs=1 seek=200 conv=notrunc 2>/dev/null
expect 1 'damaged' long
head -c 100 "$tmp/kept" >"$tmp/state"
expect 1 'damaged' long
head -c 10 "$tmp/kept" >"$tmp/state"
expect 1 'cut off' long
expect 2 '' ls "$tmp/b.yaml"

# One that ends removes it.
expect 0 '2000 tokens' calibrate --tokens 2000 --state "$tmp/new" --output "$tmp/a.yaml"
expect 2 '' ls "$tmp/new"

echo "$n_passed passed, $n_failed failed"
[ "$n_failed" -eq 0 ]
