#!/bin/sh
# tests/run itself: every way a test program can go wrong must be seen.
set -u

n_passed=0
n_failed=0
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT

# expect LAST_LINE EXIT_STATUS BODY...: a program of each body, run together.
expect() {
    want=$1
    status=$2
    shift 2
    i=0
    rm -f "$tmp"/p*
    for body; do
        i=$((i + 1))
        printf '#!/bin/sh\n%s\n' "$body" >"$tmp/p$i"
        chmod +x "$tmp/p$i"
    done
    got=$(cd "$tmp" && env -u TRIKV_RUNNER -u TRIKV_NO_SKIP TRIKV_TEST_TIMEOUT=1 ${skips:+TRIKV_NO_SKIP=1} \
        "$run" "$tmp"/p* 2>&1)
    if [ $? -eq "$status" ] && [ "$(echo "$got" | tail -n 1)" = "$want" ]; then
        n_passed=$((n_passed + 1))
    else
        echo "FAIL: want '$want', status $status, got:"
        echo "$got"
        n_failed=$((n_failed + 1))
    fi
}

run=$PWD/tests/run
skips=
expect "3 passed, 0 failed" 0 'echo "3 passed, 0 failed"'
expect "3 passed, 1 failed" 1 'echo "3 passed, 1 failed"; exit 1'
expect "3 passed, 1 failed" 1 'echo "3 passed, 0 failed"; exit 1'
expect "3 passed, 1 failed" 1 'echo "3 passed, 0 failed"; kill -SEGV $$'
expect "0 passed, 1 failed" 1 'exit 0'
expect "0 passed, 1 failed" 1 'sleep 10'
expect "0 passed, 1 failed" 1 'echo "0 passed, 0 failed"'
expect "2 passed, 0 failed" 0 'echo 1..2; echo ok 1 - a; echo ok 2 - b'
expect "1 passed, 1 failed" 1 'echo 1..2; echo ok 1 - a; echo not ok 2 - b; exit 1'
expect "1 passed, 1 failed" 1 'echo 1..3; echo ok 1 - a'
expect "1 passed, 0 failed" 0 'echo 1..2; echo ok 1 - a; echo "not ok 2 # SKIP b"'
expect "4 passed, 1 failed" 1 'echo "3 passed, 0 failed"' 'exit 0' 'echo "1 passed, 0 failed"'
expect "0 passed, 1 failed" 1 'echo "skipped: no data"; echo "0 passed, 0 failed"'
expect "1 passed, 0 failed" 0 'echo "skipped: no data"; echo "0 passed, 0 failed"' \
    'echo "1 passed, 0 failed"'
expect "1 passed, 0 failed" 0 'echo "skipped: no data"' 'echo "1 passed, 0 failed"'
expect "1 passed, 1 failed" 1 'echo "skipped: no data"; exit 3' 'echo "1 passed, 0 failed"'
skips=1
expect "1 passed, 1 failed" 1 'echo 1..2; echo ok 1 - a; echo "not ok 2 # SKIP b"'

echo "$n_passed passed, $n_failed failed"
[ "$n_failed" -eq 0 ]
