#!/bin/sh
# Debian packages of this tree, in build/deb: ops/deb.sh [ARCHITECTURE ROOT]
#
# With an architecture it is cross-built against the libraries below ROOT (tests/arm64_root.sh makes
# one). Built in a copy of the files that git knows, so that nothing of a build folder gets in.
set -eu
here=$(pwd)
arch=${1:-$(dpkg --print-architecture)}
root=${2:-}
out=$here/build/deb
copy=$out/source-$arch/trikv

for tool in dpkg-buildpackage dh fakeroot; do
    command -v "$tool" >/dev/null || { echo "ops/deb.sh: $tool is missing: make setup" >&2; exit 69; }
done
rm -rf "$out/source-$arch"
mkdir -p "$copy"
if git rev-parse --git-dir >/dev/null 2>&1; then
    git ls-files -co --exclude-standard
else
    find . -type f ! -path './build/*' -printf '%P\n'
fi | tar -c -T - | tar -x -C "$copy"

# One time for every file, that of the changelog: the same bytes whenever they are built.
SOURCE_DATE_EPOCH=$(cd "$copy" && dpkg-parsechangelog -S Timestamp)
export SOURCE_DATE_EPOCH
if [ -n "$root" ]; then
    make -s PREFIX=/usr SYSCONFDIR=/etc all
    export TRIKV_ROOT="$root" TRIKV_MAN_BIN="$here/build/bin"
fi
export DEB_BUILD_OPTIONS="${DEB_BUILD_OPTIONS:-parallel=$(nproc) nocheck}"
(cd "$copy" && dpkg-buildpackage -b -us -uc -d -a"$arch") >"$out/$arch.log" 2>&1 || {
    tail -n 40 "$out/$arch.log"
    exit 1
}
mv "$out/source-$arch"/*.deb "$out"
rm -rf "$out/source-$arch"
ls -l "$out"/*"_$arch.deb" "$out"/*_all.deb
