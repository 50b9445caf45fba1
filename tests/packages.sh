#!/bin/sh
# The Debian packages: they build, lintian finds nothing but the place holder for a maintainer, and
# what is in them runs, from a folder that they are unpacked to.
set -u
n_passed=0
n_failed=0
for tool in dpkg-buildpackage dh fakeroot lintian; do
    command -v "$tool" >/dev/null || { echo "skipped: packages need $tool"; exit 0; }
done
tmp=$(mktemp -d) || exit 1
daemon=
trap '[ -z "$daemon" ] || kill "$daemon" 2>/dev/null; rm -rf "$tmp"' EXIT

check() { # name command...
    name=$1
    shift
    if "$@" >"$tmp/out" 2>&1; then
        n_passed=$((n_passed + 1))
        echo "ok: $name"
    else
        n_failed=$((n_failed + 1))
        echo "FAIL: $name"
        sed 's/^/  /' "$tmp/out"
    fi
}

check "packages" ops/deb.sh
arch=$(dpkg --print-architecture)
for p in trikvd libtrikv0 libtrikv-dev trikv-tools; do
    check "$p" dpkg-deb -x "build/deb/${p}_0.1.0_$arch.deb" "$tmp/root"
done
check "lintian" lintian --allow-root --fail-on error,warning \
    --suppress-tags bogus-mail-host,bogus-mail-host-in-debian-changelog build/deb/*"_$arch.deb" build/deb/*_all.deb
bin=$tmp/root/usr/bin
lib=$tmp/root/usr/lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH)
check "configuration" "$bin/trikvd" --config "$tmp/root/etc/trikv/trikvd.yaml" \
    --profiles "$tmp/root/etc/trikv/profiles" --check-config
"$bin/trikvd" --config "$tmp/root/etc/trikv/trikvd.yaml" --socket "$tmp/s" \
    --profiles "$tmp/root/etc/trikv/profiles" 2>"$tmp/log" &
daemon=$!
for _ in $(seq 100); do
    "$bin/trikvctl" --socket "$tmp/s" ping >/dev/null 2>&1 && break
    sleep 0.1
done
check "trikvctl" "$bin/trikvctl" --socket "$tmp/s" info
check "trikv-run" "$bin/trikv-run" --socket "$tmp/s" --prompt Once --generate 4 \
    --model "$(find "$tmp/root/usr/share/trikv/models" -name '*.gguf' | head -n 1)"
check "library" sh -c "nm -D --defined-only '$lib/libtrikv.so.0' | grep -q trikv_connect"
check "pkg-config" sh -c \
    "PKG_CONFIG_PATH='$lib/pkgconfig' pkg-config --print-provides libtrikv | grep -q 'libtrikv = '"
kill "$daemon" && wait "$daemon"
check "trikvd ended well" test $? -eq 0
daemon=
echo "$n_passed passed, $n_failed failed"
[ "$n_failed" -eq 0 ]
