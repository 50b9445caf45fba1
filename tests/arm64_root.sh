#!/bin/sh
# Fill a folder with the arm64 libraries that the tests need, from Debian's packages: fetched
# with apt, unpacked with dpkg-deb. Needs no root and leaves this machine's packages alone.
#
#   tests/arm64_root.sh FOLDER
set -eu

root=$(mkdir -p "$1" && cd "$1" && pwd)
packages='libc6-dev libuv1-dev libprotobuf-c-dev libyaml-dev libxxhash-dev libjemalloc-dev zlib1g-dev libzstd-dev'
packages="$packages libcmocka-dev libjansson-dev linux-libc-dev"
# A folder is complete when this file says with what it was filled.
[ "$(cat "$root/.complete" 2>/dev/null)" = "$packages" ] && exit 0

echo "fetching arm64 libraries into $1"
apt=$root/.apt
mkdir -p "$apt/lists/partial" "$apt/archives/partial"
: >"$apt/status"
get() {
    apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 \
        -o Dir::State::lists="$apt/lists" -o Dir::State::status="$apt/status" \
        -o Dir::Cache="$apt" -o Dir::Cache::archives="$apt/archives" \
        -o Debug::NoLocking=1 -o APT::Sandbox::User= "$@"
}
get update
# shellcheck disable=SC2086
get install -y --no-install-recommends --download-only $packages
for p in "$apt"/archives/*.deb; do
    dpkg-deb -x "$p" "$root"
done
# The linker would follow absolute links out of the folder.
find "$root/usr/lib" "$root/lib" -type l -lname '/*' | while read -r link; do
    ln -sf "$root$(readlink "$link")" "$link"
done
rm -rf "$apt"
echo "$packages" >"$root/.complete"
