#!/bin/sh
# make install into a prefix of its own, a program built against it, make uninstall.
set -u

n_passed=0
n_failed=0
tmp=$(mktemp -d) || exit 1
daemon=
trap 'test -z "$daemon" || kill "$daemon" 2>/dev/null; rm -rf "$tmp"' EXIT
prefix=$tmp/usr
# The compiler and build of the make that runs this are not those of a user.
unset MAKEFLAGS MFLAGS MAKELEVEL BUILD CC CFLAGS WERROR

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

finish() {
    echo "$n_passed passed, $n_failed failed"
    [ "$n_failed" -eq 0 ]
    exit
}

check "install" make -s install PREFIX=/opt/trikv DESTDIR="$tmp/root" UNITDIR=/opt/units
at=$tmp/root/opt/trikv
for f in bin/trikvd bin/trikvctl bin/trikv-run bin/trikv-calibrate lib/libtrikv.a \
    lib/libtrikv.so.0 lib/libtrikv.so include/trikv.h lib/pkgconfig/libtrikv.pc \
    etc/trikv/trikvd.yaml etc/trikv/profiles share/trikv/models \
    share/trikv/python/trikv/session.py share/trikv/python/trikv/py.typed; do
    check "installed" test -e "$at/$f"
done
check "unit" grep -q '^ExecStart=/opt/trikv/bin/trikvd' "$tmp/root/opt/units/trikvd.service"
check "nothing unfilled" sh -c "! grep -rIl '@[A-Z]*@' '$tmp/root'"
check "two headers" test "$(cd "$at/include" && echo *)" = "trikv.h trikv.hpp"

# A configuration that somebody changed stays.
echo "# mine" >"$at/etc/trikv/trikvd.yaml"
check "install again" make -s install PREFIX=/opt/trikv DESTDIR="$tmp/root" UNITDIR=/opt/units
check "configuration kept" grep -q '^# mine$' "$at/etc/trikv/trikvd.yaml"
check "uninstall" make -s uninstall PREFIX=/opt/trikv DESTDIR="$tmp/root" UNITDIR=/opt/units
check "configuration still kept" grep -q '^# mine$' "$at/etc/trikv/trikvd.yaml"
check "nothing else left" test -z "$(find "$tmp/root" ! -type d ! -path '*/etc/trikv/*')"

# A prefix that programs find their things in, and a program against the library.
check "install" make -s install PREFIX="$prefix"
cat >"$tmp/hello.c" <<'END'
#include <stdio.h>
#include <trikv.h>

int main(int argc, char **argv)
{
    const struct trikv_options o = {.size = sizeof(o), .socket = argv[argc - 1]};
    struct trikv_client *c = NULL;
    const int e = trikv_connect(&c, &o);

    printf("%s\n", e ? trikv_last_error(c) : trikv_info(c)->version);
    trikv_disconnect(&c);
    return e;
}
END
pc() {
    PKG_CONFIG_PATH=$prefix/lib/pkgconfig pkg-config "$@" libtrikv
}
# shellcheck disable=SC2046  # flags are words
{
    check "shared" cc -o "$tmp/shared" "$tmp/hello.c" $(pc --cflags --libs)
    check "static" cc -o "$tmp/static" "$tmp/hello.c" $(pc --cflags) "$prefix/lib/libtrikv.a" \
        $(pc --static --libs-only-l | sed 's/-ltrikv//')
}
check "shared is used" sh -c "ldd '$tmp/static' | grep -q trikv && exit 1; \
    LD_LIBRARY_PATH='$prefix/lib' ldd '$tmp/shared' | grep -q '$prefix/lib/libtrikv.so.0'"
check "configuration" "$prefix/bin/trikvd" --config "$prefix/etc/trikv/trikvd.yaml" --check-config

"$prefix/bin/trikvd" --socket "$tmp/s" 2>"$tmp/trikvd.log" &
daemon=$!
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    "$prefix/bin/trikvctl" --socket "$tmp/s" ping >/dev/null 2>&1 && break
    sleep 0.1
done
check "shared runs" env LD_LIBRARY_PATH="$prefix/lib" "$tmp/shared" "$tmp/s"
check "static runs" "$tmp/static" "$tmp/s"
check "trikvctl" "$prefix/bin/trikvctl" --socket "$tmp/s" ping
for command in ping info stats sessions profiles config; do
    check "trikvctl --json $command" sh -c \
        "'$prefix/bin/trikvctl' --socket '$tmp/s' --json $command | python3 -m json.tool"
done
kill "$daemon" && wait "$daemon"
check "trikvd ended well" test $? -eq 0
daemon=
check "no daemon" sh -c "'$prefix/bin/trikvctl' --socket '$tmp/s' ping; test \$? -eq 69"
finish
