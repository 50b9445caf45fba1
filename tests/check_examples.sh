#!/bin/sh
# Every example does what it says, on a trikvd of its own.
set -u

build=${TRIKV_BUILD:-build}
programs=${TRIKV_BIN:-$build/bin}
python=${PYTHON:-/usr/bin/python3}
n_passed=0
n_failed=0
tmp=$(mktemp -d) || exit 1
daemon=
trap 'test -z "$daemon" || kill "$daemon" 2>/dev/null; rm -rf "$tmp"' EXIT

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

said() {
    cp "$tmp/log" "$tmp/said"
    check "$1 says so" grep -q "$2" "$tmp/said"
}

export TRIKV_SOCKET="$tmp/trikvd.sock"
"$programs/trikvd" --socket "$TRIKV_SOCKET" --memory-cap 256MiB --profiles /nonexistent \
    --log-level error --threads 2 &
daemon=$!
waited=0
while [ ! -S "$TRIKV_SOCKET" ] && [ $waited -lt 100 ]; do
    sleep 0.1
    waited=$((waited + 1))
done

cc=$(command -v gcc || command -v cc)
mkdir "$tmp/include"
cp client/trikv.h "$tmp/include"
ln -s "$PWD/$build/lib/libtrikv.so.0" "$tmp/libtrikv.so"
ln -s "$PWD/$build/lib/libtrikv.so.0" "$tmp/libtrikv.so.0"
case $build in
*asan* | *tsan* | *fuzz*) echo "skipped: a library with a sanitizer" && exit 0 ;;
esac
check "reader compiles" "$cc" -std=gnu17 -Wall -Wextra -Wconversion -Werror -I "$tmp/include" \
    -o "$tmp/reader" examples/reader.c -L "$tmp" -ltrikv -lm -Wl,-rpath,"$tmp"
check "reader" "$tmp/reader"
check "reader of nothing fails" sh -c "! '$tmp/reader' 4711"

if "$python" -c 'import numpy' 2>/dev/null; then
    export PYTHONPATH=bindings/python PYTHONDONTWRITEBYTECODE=1
    export TRIKV_LIBRARY="$tmp/libtrikv.so.0"
    check "speculative" "$python" examples/speculative.py
    said "speculative" "same tokens: True; same cache, to the bit: True"
    check "shared prompt" "$python" examples/shared_prompt.py
    said "shared prompt" "themselves: True"
else
    echo "skipped: $python has no numpy (python3-numpy)"
fi

kill "$daemon"
wait "$daemon"
check "trikvd ends cleanly" test $? -eq 0
daemon=
echo "$n_passed passed, $n_failed failed"
[ "$n_failed" -eq 0 ]
