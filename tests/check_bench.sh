#!/bin/sh
# trikv-bench: every command with tiny sizes gives JSON with the fields that others read, numbers
# that fit each other, and comparisons that do their work; what is wrong with options is said.
set -u

bench=${TRIKV_BUILD:-build}/bin/trikv-bench
n_passed=0
n_failed=0
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT

check() {
    name=$1
    shift
    if "$@" >"$tmp/log" 2>&1; then
        n_passed=$((n_passed + 1))
    else
        echo "FAIL: $name: $*"
        sed 's/^/  /' "$tmp/log"
        n_failed=$((n_failed + 1))
    fi
}

cat >"$tmp/fields.py" <<'END'
"""fields.py FILE [CONDITION...]: a condition is Python over the fields, as names."""
import json
import math
import sys

with open(sys.argv[1], encoding="utf-8") as f:
    found = json.load(f)
if "results" in found:
    (found,) = found["results"]
for condition in sys.argv[2:]:
    if not eval(condition, {"__builtins__": {}, "near": math.isclose, **found}):
        sys.exit(f"not so: {condition}\n{found}")
END

# json COMMAND OPTIONS... -- CONDITIONS...
json() {
    command=$1
    options=
    while [ "$1" != -- ]; do
        options="$options $1"
        shift
    done
    shift
    # shellcheck disable=SC2086  # options are words
    check "$command" "$bench" $options --json
    cp "$tmp/log" "$tmp/json"
    check "$command is JSON" python3 -m json.tool "$tmp/json"
    check "$command fields" python3 "$tmp/fields.py" "$tmp/json" "$@"
}

json score --tokens 256 --seconds 0 -- 'keys == 256' 'us_per_head > 0' 'ns_per_key > 0'
json accuracy --tokens 1000 --group 5 -- 'tokens == 1000' '0 < error_std_1 < 2e-3' \
    '0 < error_std_2 < 2e-3' '0 < error_std_4 < 2e-3' 'lse_error < 2e-3'

tiny="--tokens 256 --kv-heads 2 --seconds 0"
for codec in int8 tq4 tq3.5 tq3 tq2.5 tq2 fp16; do
    # shellcheck disable=SC2086
    json attend $tiny --resident --head-dim 64 --group 2 --codec $codec --threads 1 -- \
        'ns_per_token_kv_head > 0' 'gbytes_per_s > 0' 'floor_share > 0' 'spread >= 0' 'p10 <= p90' \
        'speedup_vs_fp16 > 0' 'speedup_vs_plain_c > 0' \
        'near(gbytes_per_s, bytes_per_token_kv_head / ns_per_token_kv_head, rel_tol=1e-6)' \
        'near(floor_share, gbytes_per_s / read_gbytes_per_s, rel_tol=1e-6)' \
        'near(speedup_vs_q8_0, q8_0_ns / ns_per_token_kv_head, rel_tol=1e-6)' \
        'q8_0_error < 0.02 and q4_0_error < 0.02' 'repetitions >= 7'
done
# shellcheck disable=SC2086
json attend $tiny --kv-heads 1 --head-dim 80 --rope-dim 16 --group 128 -- 'rope_dim == 16' 'group == 128' \
    'bytes_per_token_kv_head > 32 + 32'
# shellcheck disable=SC2086
json attend $tiny --head-dim 48 --group 5 --threads 2 -- 'layers > 1' 'threads == 2' \
    'ns_per_token_kv_head > 0' \
    'near(speedup_vs_one_thread, one_thread_ns / ns_per_token_kv_head, rel_tol=1e-6)'
# shellcheck disable=SC2086
json attend $tiny --alone --disable avx512,avx2,neon -- 'features == "scalar"'
json encode --head-dim 64 --codec tq4 --threads 1 --seconds 0 -- 'vectors_per_s > 0' \
    'rel_mse_keys < 0.012 and rel_mse_values < 0.012' 'q8_0_rel_mse < 1e-4' 'q4_0_rel_mse < 0.01' \
    'near(1e9 / vectors_per_s, ns_per_vector, rel_tol=1)'
json encode --head-dim 64 --input bf16 --threads 1 --seconds 0 -- 'rel_mse_keys < 0.012' \
    'near(speedup_vs_floats_first, floats_first_ns / ns_per_vector, rel_tol=1)' 'q8_0_rel_mse < 1e-4'
json encode --head-dim 80 --codec tq3-qjl --threads 2 --seconds 0 --alone -- 'vectors_per_s > 0'
json round --layers 2 --kv-heads 2 --group 2 --head-dim 64 --tokens 256 --codec tq3 --threads 1 \
    --seconds 0 -- 'ms_per_round > 0' 'speedup_vs_fp16 > 0' 'speedup_vs_plain_c > 0'
json memory --threads 1 --seconds 0 -- 'memory_gbytes_per_s > 0'
json ipc --tokens 300 -- 'socket_p50_us > 0' 'ring_sleep_p50_us > 0' 'layers_local_us > 0' \
    'ring_sleep_nothing_p50_us > 0' 'bare_socket_p50_us > 0' 'bare_eventfd_p50_us > 0' \
    'socket_p50_us > bare_socket_p50_us / 2' 'layers_daemon_us > 0' \
    'near(socket_ratio, socket_p50_us / bare_socket_p50_us, rel_tol=1e-6)' \
    'near(ring_sleep_work_us, ring_sleep_p50_us - ring_sleep_nothing_p50_us, rel_tol=1e-3)' \
    'layers_ring_percent > 0' \
    'near(layers_ring_us, layers_ring_percent / 100 * layers_local_us / 32, rel_tol=1e-3)'
json session --layers 4 --tokens 300 --seconds 0 -- 'open_us > 0' 'fork_us > 0' \
    'truncate_us > 0' 'fork_bytes > 1000 and fork_bytes < 65536' \
    'map_us > 0' 'daemon_attend_us > 0' 'local_attend_us > 0'
json snapshot --layers 2 --kv-heads 2 --tokens 600 --seconds 0 -- 'file_bytes > 0' '0 < ratio < 1' \
    'near(ratio, file_bytes / resident_bytes, rel_tol=1e-6)' 'bytes_per_token * 600 > 0.99 * file_bytes' \
    'write_mb_per_s > 0' 'read_mb_per_s > 0' 'other_ms > 0' 'fp16_ratio < ratio'
json appliance --tokens 1024 --budget 512 -- 'tokens == 1024' 'n_kept == 512' \
    'resident_bytes > 0' 'compression > 1' 'append_us_per_token > 0' 'round_ms > 0' \
    'attend_us_per_token > 0' 'daemon_peak_bytes > resident_bytes'
json model --tokens 300 --seconds 0 -- 'read_per_s > 0' 'local_read_per_s > 0' 'write_per_s > 0' \
    'local_write_per_s > 0' 'near(read_ratio, read_per_s / local_read_per_s, rel_tol=1e-6)'
for work in attend encode round; do
    json work --tokens 256 --work $work --times 2 -- "work == '$work'" 'times == 2'
done
check "wrong: work" sh -c "'$bench' work --work rest; test \$? -eq 70"
json appliance --tokens 1280 --budget 512 -- 'append_q1_us > 0' 'round_q4_cpu_ms > 0' \
    'resident_q4_bytes < resident_q1_bytes * 1.05'

# A report: prose stays, tables come in, a mistake leaves the old one.
printf '%s\n' '# On @date' '@table encode ns_per_vector rel_mse_keys' '--codec tq2 --seconds 0 --alone' \
    '@end' '@row of values: rel_mse_values' 'after' >"$tmp/in.md"
check "report" "$bench" report --in "$tmp/in.md" --out "$tmp/out.md"
check "report has its table" grep -q 'codec tq2 --seconds 0 --alone. | [0-9]* | 0.11' "$tmp/out.md"
check "report has a row of it" grep -q '^| of values | 0.11[0-9]* |$' "$tmp/out.md"
check "report has its day" grep -q '^# On 2[0-9-]*$' "$tmp/out.md"
check "report goes on" grep -q '^after$' "$tmp/out.md"
cp "$tmp/out.md" "$tmp/old.md"
echo '@table nothing at_all' >>"$tmp/in.md"
check "a mistake is said" sh -c "'$bench' report --in '$tmp/in.md' --out '$tmp/out.md' 2>&1 |
    grep -q 'line 7'"
check "the old report stays" cmp "$tmp/out.md" "$tmp/old.md"

for wrong in "" nothing "encode --input f64" "attend --codec tq9" "attend --head-dim 7" "attend --tokens x" \
    "attend more" "attend --threads 0"; do
    # shellcheck disable=SC2086
    check "wrong: $wrong" sh -c "'$bench' $wrong; test \$? -eq 64"
done
check "no daemon" sh -c "TRIKV_BIN=/nonexistent '$bench' session; test \$? -eq 70"
check "help" "$bench" --help
check "text" "$bench" memory --seconds 0

echo "$n_passed passed, $n_failed failed"
[ "$n_failed" -eq 0 ]
