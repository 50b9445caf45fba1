#!/bin/sh
# The arrows of the layers, in includes and in symbols:
#
#   core <- store <- daemon      proto: store, daemon, client      client: core, proto
#
# It says how much it looked at; looking at nothing is a failure.
set -u

build=${TRIKV_BUILD:-build}
n_passed=0
n_failed=0
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT

# verdict NAME N_SEEN FILE: passed if something was seen and FILE, the violations, is empty.
verdict() {
    if [ "$2" -gt 0 ] && [ ! -s "$3" ]; then
        echo "ok: $1: looked at $2"
        n_passed=$((n_passed + 1))
    else
        echo "FAIL: $1: looked at $2"
        sed 's/^/  /' "$3"
        n_failed=$((n_failed + 1))
    fi
}

# "file<TAB>include" for every include of the tree.
for layer in core proto store daemon client tools bench tests; do
    for f in "$layer"/*.[ch]; do
        [ -f "$f" ] || continue
        sed -n "s|^[[:blank:]]*#[[:blank:]]*include[[:blank:]]*\([<\"][^>\"]*\).*|$f	\1|p" "$f"
    done
done >"$tmp/includes"

# Own headers: "layer include" pairs that are allowed.
awk -F'\t' '
BEGIN {
    split("core proto store daemon client tools bench tests", layers, " ")
    allowed["core"] = "core"
    allowed["proto"] = "proto"
    allowed["store"] = "store core proto"
    allowed["daemon"] = "daemon store core proto"
    allowed["client"] = "client core proto"
    allowed["tools"] = "tools client core proto"
    allowed["bench"] = "bench tools client store core proto"
    allowed["tests"] = "tests tools client daemon store core proto"
}
substr($2, 1, 1) != "\"" { next }
{
    from = $1; sub("/.*", "", from)
    path = substr($2, 2)
    to = path; sub("/.*", "", to)
    if (path !~ "/") { print $1 " includes \"" path "\": write it from the root"; next }
    # Tools read profiles and write them, with the reader that the daemon has.
    if (from == "tools" && path ~ "^daemon/(yaml|profile|diag)[a-z_]*\\.h$") next
    if (index(" " allowed[from] " ", " " to " ") == 0)
        print $1 " includes \"" path "\": " from " may use " allowed[from]
}' "$tmp/includes" >"$tmp/bad"
verdict "own includes" "$(grep -c '"' "$tmp/includes")" "$tmp/bad"

# Libraries, each known to few.
awk -F'\t' '
{
    from = $1; sub("/.*", "", from)
    path = substr($2, 2)
    if (path ~ "^uv" && from != "daemon") print $1 " includes " path
    if (path ~ "^yaml\\.h" && from !~ "^(daemon|tools)$") print $1 " includes " path
    if (path ~ "^jemalloc/" && from != "daemon") print $1 " includes " path
    if (path ~ "^(cmocka|jansson)\\.h" && from != "tests") print $1 " includes " path
    if (path ~ "protobuf-c/|pb-c\\.h$" && from !~ "^(daemon|client|tests|bench)$" &&
        $1 !~ "^tools/(trikvctl|ctl_[a-z_]*)\\.[ch]$")
        print $1 " includes " path
    if (from == "core" && path != "sys/auxv.h" && path ~ "^(stdio|unistd|fcntl|time|pthread|errno|signal|sys/.*)\\.h$")
        print $1 " includes " path ": core does no I/O and has no clock"
}' "$tmp/includes" >"$tmp/bad"
verdict "library includes" "$(wc -l <"$tmp/includes")" "$tmp/bad"

# A global name says whose it is.
: >"$tmp/bad"
n=0
for a in core store daemon proto; do
    nm -g --defined-only "$build/lib/$a.a" 2>/dev/null | awk 'NF == 3 { print $3 }' >"$tmp/names"
    n=$((n + $(wc -l <"$tmp/names")))
    # The generated code of protobuf-c has names of its own; sanitizers add some.
    grep -vE '^(tkv_|_?_?(asan|tsan|odr)|\.)' "$tmp/names" | grep -vE '^trikv__' |
        sed "s/^/$a.a defines /" >>"$tmp/bad"
    [ -s "$tmp/names" ] || echo "$a.a: no symbols in $build/lib" >>"$tmp/bad"
done
nm -g --defined-only "$build/lib/libtrikv.a" | awk 'NF == 3 { print $3 }' |
    grep -vE '^(tkv_|trikv_)' | sed 's/^/libtrikv.a defines /' >>"$tmp/bad"
verdict "names of globals" "$n" "$tmp/bad"

# What the shared library exports is just what its header promises.
cc -E -P client/trikv.h | grep -oE '\<trikv_[a-z_]+\(' | tr -d '(' | sort >"$tmp/promised"
nm -D --defined-only "$build/lib/libtrikv.so.0" | awk '$2 != "A" { print $3 }' |
    sed 's/@.*//' | sort >"$tmp/exported"
diff "$tmp/promised" "$tmp/exported" >"$tmp/bad"
verdict "exports of libtrikv" "$(wc -l <"$tmp/promised")" "$tmp/bad"

# core calls nothing but itself, memory moves and mathematics.
nm -u "$build/lib/core.a" | awk 'NF == 2 { print $2 }' | sort -u >"$tmp/undefined"
grep -vE '^(tkv_.*|mem(cpy|move|set|cmp|chr)|str(len|cmp|ncmp|chr|spn|cspn)|__stack_chk_fail)$' \
    "$tmp/undefined" | grep -vE '^(__assert_fail|_GLOBAL_OFFSET_TABLE_|__cpu_model|__cpu_features2|__cpu_indicator_init|getauxval)$' |
    grep -vE '^(exp|exp2|log|hypot|nextafter|ilogb|log2|sqrt|sin|cos|sincos|erf|pow|tan|ldexp|frexp|lgamma|fabs|floor|ceil|round|rint|lrint|fmax|fmin|nan|scalbn|copysign|isnan|isinf)[fl]?$' |
    grep -vE '^__(asan|tsan|ubsan)_' | sed 's/^/core calls /' >"$tmp/bad"
verdict "what core calls" "$(wc -l <"$tmp/undefined")" "$tmp/bad"

# No state in core. (.data.rel.ro is constant: tables with pointers in them.)
nm -f sysv "$build/lib/core.a" | awk -F'|' '
    { gsub(" ", "", $1); gsub(" ", "", $7) }
    $7 ~ /^(\.data|\.bss|\.tdata|\.tbss|\*COM\*)/ && $7 !~ /^\.data\.rel\.ro/ {
        print "core has the variable " $1 " in " $7
    }' | grep -vE 'variable (__|\.L|.*(asan|odr))' >"$tmp/bad"
verdict "variables of core" "$(nm "$build/lib/core.a" | wc -l)" "$tmp/bad"

echo "$n_passed passed, $n_failed failed"
[ "$n_failed" -eq 0 ]
