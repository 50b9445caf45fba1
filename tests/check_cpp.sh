#!/bin/sh
# The C++ wrapper: compiled without warnings, and run on a trikvd of its own.
set -u

build=${TRIKV_BUILD:-build}
programs=${TRIKV_BIN:-$build/bin}
tmp=$(mktemp -d) || exit 1
daemon=
trap 'test -z "$daemon" || kill "$daemon" 2>/dev/null; rm -rf "$tmp"' EXIT

case $build in
*asan* | *tsan* | *fuzz*) echo "skipped: a library with a sanitizer" && exit 0 ;;
esac
mkdir "$tmp/include"
cp client/trikv.h bindings/cpp/trikv.hpp "$tmp/include"
ln -s "$PWD/$build/lib/libtrikv.so.0" "$tmp/libtrikv.so"
ln -s "$PWD/$build/lib/libtrikv.so.0" "$tmp/libtrikv.so.0"

n=0
for cxx in clang++ g++; do
    command -v $cxx >/dev/null || continue
    n=$((n + 1))
    $cxx -std=c++17 -Wall -Wextra -Wpedantic -Wconversion -Werror -I "$tmp/include" \
        -o "$tmp/session" tests/cpp/session.cc -L "$tmp" -ltrikv -Wl,-rpath,"$tmp" || {
        echo "0 passed, 1 failed"
        exit 1
    }
done
[ $n -gt 0 ] || { echo "skipped: no C++ compiler" && exit 0; }

export TRIKV_SOCKET="$tmp/trikvd.sock"
mkdir -m 700 "$tmp/snapshots"
printf 'snapshot:\n  directory: "%s"\n' "$tmp/snapshots" >"$tmp/trikvd.yaml"
"$programs/trikvd" --config "$tmp/trikvd.yaml" --socket "$TRIKV_SOCKET" --memory-cap 256MiB --profiles /nonexistent \
    --log-level error --threads 2 &
daemon=$!
waited=0
while [ ! -S "$TRIKV_SOCKET" ] && [ $waited -lt 100 ]; do
    sleep 0.1
    waited=$((waited + 1))
done
"$tmp/session"
