#!/bin/sh
# The installed header stands alone: C11, C17 and C++, without warnings.
set -u

n_passed=0
n_failed=0
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
cp client/trikv.h "$tmp"

cat >"$tmp/use.c" <<'END'
#include "trikv.h"
int use(struct trikv_client *c, struct trikv_session **s);
int use(struct trikv_client *c, struct trikv_session **s)
{
    struct trikv_session_options o = TRIKV_SESSION_OPTIONS_INIT;

    return trikv_open(c, &o, s);
}
END
cp "$tmp/use.c" "$tmp/use.cc"
printf '#include "trikv.h"\n#include "trikv.h"\n' >"$tmp/alone.c"
cp "$tmp/alone.c" "$tmp/alone.cc"

try() {
    if "$@" -Wall -Wextra -Wpedantic -Werror -fsyntax-only; then
        n_passed=$((n_passed + 1))
    else
        echo "FAIL: $*"
        n_failed=$((n_failed + 1))
    fi
}

compilers=0
for cc in gcc clang; do
    command -v $cc >/dev/null || continue
    compilers=$((compilers + 1))
    for std in c11 c17 gnu17; do
        try $cc -std=$std "$tmp/use.c"
        try $cc -std=$std "$tmp/alone.c"
    done
done
for cxx in g++ clang++; do
    command -v $cxx >/dev/null || continue
    compilers=$((compilers + 1))
    try $cxx -std=c++11 "$tmp/alone.cc"
    try $cxx -std=c++11 "$tmp/use.cc"
done
echo "$compilers compilers"
echo "$n_passed passed, $n_failed failed"
[ "$n_failed" -eq 0 ]
