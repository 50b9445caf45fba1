#!/bin/sh
# The same sources give the same bytes, wherever and whenever they are built: two copies, two folders
# of different depth, two locales, two time zones.
set -u
n_passed=0
n_failed=0
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT

copy() { # to
    mkdir -p "$1"
    if git rev-parse --git-dir >/dev/null 2>&1; then
        git ls-files -co --exclude-standard
    else
        find . -type f ! -path './build/*' -printf '%P\n'
    fi | grep -v '^models/' | tar -c -T - | tar -x -C "$1"
}

verdict() { # status name
    if [ "$1" -eq 0 ]; then
        n_passed=$((n_passed + 1))
        echo "ok: $2"
    else
        n_failed=$((n_failed + 1))
        echo "FAIL: $2"
    fi
}

copy "$tmp/a"
copy "$tmp/b/deeper/down"
(cd "$tmp/a" && LC_ALL=C TZ=UTC make -s -j2 all man) >"$tmp/log" 2>&1
verdict $? "builds" || cat "$tmp/log"
(cd "$tmp/b/deeper/down" && LC_ALL=C.UTF-8 TZ=Asia/Tokyo make -s -j1 all man) >"$tmp/log" 2>&1
verdict $? "builds elsewhere" || cat "$tmp/log"

n=0
for f in bin lib man; do
    for one in "$tmp/a/build/$f"/*; do
        other=$tmp/b/deeper/down/build/$f/${one##*/}
        cmp -s "$one" "$other"
        verdict $? "$f/${one##*/}"
        n=$((n + 1))
    done
done
[ "$n" -ge 15 ]
verdict $? "compared $n files"
echo "$n_passed passed, $n_failed failed"
[ "$n_failed" -eq 0 ]
