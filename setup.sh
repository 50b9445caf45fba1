#!/bin/sh
# Install the Debian packages that TriKV needs and that are missing: to build it, to run its
# tests, to run everything that CI runs.
#
#   ./setup.sh [build] [test] [ci]
#
# Says what it installs and why; does nothing if all is there. For Debian 12 and Raspberry
# Pi OS; elsewhere it names the packages and leaves the rest to you.
set -eu

wanted='
build gcc                  C compiler
build libc6-dev            C library
build make                 builds the tree
build pkg-config           finds the libraries
build libuv1-dev           event loop of the daemon
build libprotobuf-c-dev    control messages
build protobuf-c-compiler  control messages, generator
build libjemalloc-dev      heap of the daemon
build libyaml-dev          configuration and profiles
build libxxhash-dev        hash of profile statistics and of snapshots
build libzstd-dev          compresses snapshots
build zlib1g-dev           deflated statistics of others
test  libcmocka-dev        test programs
test  libjansson-dev       golden vectors are JSON
test  g++                  the public header is checked as C++
ci    clang                second compiler
ci    clang-format         form of the sources
ci    cppcheck             static checks
ci    shellcheck           static checks of the scripts
ci    prometheus           promtool reads metrics and alert rules
ci    jq                   checks the dashboard
ci    curl                 fetches metrics and pages
ci    chromium             opens the quality report and the status page
ci    fonts-dejavu-core    letters for it
ci    mandoc               checks the manual pages
ci    bsdextrautils        col, to read them
ci    systemd              rates the units
ci    debhelper            builds the packages
ci    fakeroot             builds the packages
ci    lintian              checks the packages
ci    mypy                 types of the Python package
test  python3              checks JSON output, runs the tests of the Python package
test  python3-numpy        tests of the Python package
'
# The sanitizers and the emulator run on the machine that the developer sits at.
if [ "$(dpkg --print-architecture 2>/dev/null)" = amd64 ]; then
    wanted="$wanted
ci    libclang-rt-14-dev      sanitizers of clang
ci    qemu-user-static        runs the arm64 tests
ci    gcc-aarch64-linux-gnu   builds the arm64 tests
ci    libc6-dev-arm64-cross   builds the arm64 tests
"
fi

groups=${*:-build}
for group in $groups; do
    case $group in
    build | test | ci) ;;
    *) echo "setup.sh: unknown group '$group': build, test, ci" >&2; exit 64 ;;
    esac
done

installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

packages=
reasons=
while read -r group package reason; do
    case " $groups " in
    *" ${group:-none} "*) ;;
    *) continue ;;
    esac
    if ! command -v dpkg-query >/dev/null || ! installed "$package"; then
        packages="$packages $package"
        reasons="$reasons$(printf '  %-22s %s' "$package" "$reason")
"
    fi
done <<END
$wanted
END

[ -n "$packages" ] || exit 0
echo "TriKV needs these packages ($groups), which are not installed:"
printf '%s' "$reasons"
if ! command -v apt-get >/dev/null; then
    echo "This is not a Debian system: install them its own way." >&2
    exit 69
fi
root=
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "Not root and no sudo: as root, apt-get install$packages" >&2; exit 77; }
    root=sudo
fi
echo "Installing them: ${root:+$root }apt-get install --no-install-recommends$packages"
$root apt-get update -qq
# shellcheck disable=SC2086  # a list of words
DEBIAN_FRONTEND=noninteractive $root apt-get install -y -qq --no-install-recommends $packages
