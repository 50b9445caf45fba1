#!/bin/sh
# What operators are given: metrics as Prometheus reads them, rules and dashboard that ask for what
# there is, a status page that a browser shows, units that are as tight as they say, pages without
# lint. Each part needs a tool of its own and says so if it is not there (make setup installs all).
set -u
build=${TRIKV_BUILD:-build}
bin=${TRIKV_BIN:-$build/bin}
n_passed=0
n_failed=0
tmp=$(mktemp -d) || exit 1
daemon=
runner=
# shellcheck disable=SC2317  # called by trap
cleanup() {
    for p in $runner $daemon; do kill "$p" 2>/dev/null; done
    wait
    rm -rf "$tmp"
}
trap cleanup EXIT

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

need() { # tool what
    command -v "$1" >/dev/null && return 0
    echo "skipped: $2 needs $1"
    return 1
}

get() { # path, further arguments for curl
    path=$1
    shift
    curl -sS --max-time 10 "$@" "http://127.0.0.1:$port$path"
}

start() {
    printf 'metrics:\n  listen: "127.0.0.1:0"\nworkers:\n  threads: 2\nmemory:\n  cap: 256MiB\n' \
        >"$tmp/config"
    "$bin/trikvd" --config "$tmp/config" --socket "$tmp/s" --profiles conf/profiles 2>"$tmp/log" &
    daemon=$!
    port=
    for _ in $(seq 100); do
        port=$(sed -n 's/.*metrics on loopback" port=\([0-9]*\).*/\1/p' "$tmp/log")
        [ -n "$port" ] && "$bin/trikvctl" --socket "$tmp/s" ping >/dev/null 2>&1 && break
        sleep 0.1
    done
    # Somebody who keeps a cache, for as long as this takes.
    "$bin/trikv-run" --socket "$tmp/s" --threads 1 --prompt "Once upon a time" --generate 3900 \
        --codec tq4 >/dev/null 2>"$tmp/run" &
    runner=$!
    for _ in $(seq 100); do
        get '/metrics' 2>/dev/null | grep -q '^trikv_session_seen_tokens.* [1-9]' && break
        sleep 0.1
    done
}

# The strict reader of the new format wants a time on each sample, which we leave to the scraper.
read_openmetrics() {
    awk '/^#/ { print; next } { print $0, "1700000000" }' "$tmp/openmetrics" >"$tmp/timed" &&
        promtool tsdb create-blocks-from openmetrics "$tmp/timed" "$tmp/blocks"
}

# Every metric that a file names is one that the daemon has; named by family, _bucket or _total.
names_exist() {
    n=0
    # shellcheck disable=SC2013  # names have no blanks
    for metric in $(grep -oE '\b(trikv|process)_[a-z0-9_]+' "$1" | sort -u); do
        n=$((n + 1))
        grep -q "^${metric}[{ ]" "$tmp/metrics" || { echo "$1: nobody has $metric"; return 1; }
    done
    echo "$n names"
    [ "$n" -ge 5 ]
}

check_metrics() {
    # Of a session that its ring has just now, the layers are known with the next beat.
    for _ in $(seq 50); do
        get '/metrics?layers=1' >"$tmp/metrics"
        grep -q '^trikv_layer_tier_bytes{' "$tmp/metrics" && break
        sleep 0.1
    done
    get '/metrics?layers=1' -H 'Accept: application/openmetrics-text' >"$tmp/openmetrics"
    check "a session and its layers" grep -q '^trikv_layer_tier_bytes{' "$tmp/metrics"
    check "names of the alert rules" names_exist ops/alerts.yaml
    check "names of the dashboard" names_exist ops/grafana.json
    if need promtool "metrics and rules"; then
        check "promtool check metrics" sh -c \
            "promtool check metrics <'$tmp/metrics' 2>&1 | tee '$tmp/lint'; test ! -s '$tmp/lint'"
        check "OpenMetrics, read strictly" read_openmetrics
        check "promtool check rules" promtool check rules ops/alerts.yaml
        check "promtool check config" promtool check config ops/prometheus.yaml
        check "promtool test rules" promtool test rules tests/alerts.yaml
    fi
    need jq "the dashboard" && check "dashboard" jq -e '
        (.panels | length) >= 10 and ([.panels[].id] | unique | length) == (.panels | length) and
        all(.panels[]; (.targets | length) > 0 and .gridPos.x + .gridPos.w <= 24)' ops/grafana.json
}

check_page() {
    need chromium "the status page" || return
    browse() {
        HOME=$tmp timeout 60 chromium --headless --no-sandbox --disable-gpu --hide-scrollbars \
            --disable-dev-shm-usage --user-data-dir="$tmp/chromium" "$@" "http://127.0.0.1:$port/"
    }
    shot=$build/status-page.png
    rm -f "$shot"
    browse --window-size=1280,960 --enable-logging=stderr --screenshot="$shot" 2>"$tmp/console"
    check "a screenshot of some substance ($shot)" sh -c "test \$(stat -c %s '$shot') -gt 20000"
    check "nothing to complain in the console" sh -c "! grep CONSOLE '$tmp/console'"
    browse --dump-dom >"$tmp/dom" 2>/dev/null
    check "the browser sees the session" grep -q '>trikv-run<' "$tmp/dom"
    check "and its tiers" grep -q 'class="k2" style="width' "$tmp/dom"
}

check_pages() {
    need mandoc "the manual" || return
    n=0
    for page in "$build"/man/*; do
        check "mandoc -Tlint ${page##*/}" mandoc -Tlint -Wwarning "$page"
        n=$((n + 1))
    done
    check "$n pages" test "$n" -ge 8
    for p in trikvd trikvctl trikv-run trikv-calibrate; do
        mandoc -Tascii "$build"/man/"$p".[18] | col -b >"$tmp/page"
        for o in $("$bin/$p" --help | grep -oE -- '(^|[ ,])--[a-z-]+' | tr -d ' ,' | sort -u); do
            grep -q -- "$o" "$tmp/page" || echo "$p: $o"
        done
    done >"$tmp/missing"
    check "every option is on its page" test ! -s "$tmp/missing"
}

check_units() {
    need systemd-analyze "the units" || return
    for u in trikvd.service trikvd.socket trikvd-metrics.socket; do
        sed "s|@PREFIX@|/usr|;s|@SYSCONFDIR@|/etc|" "systemd/$u" >"$tmp/$u"
    done
    check "exposure of at most 0.5" systemd-analyze security --offline=yes --threshold=5 \
        "$tmp/trikvd.service"
}

complete_words() { # words of a command line: what bash would offer for the last one
    PATH=$bin:$PATH bash -c '. ops/completion.bash; n=$#; COMPREPLY=()
        _trikv "$1" "${!n}" "${@:n-1:1}"; printf "%s\n" "${COMPREPLY[@]}"' bash "$@"
}

check_completion() {
    need bash "completion" || return
    check "completes commands" sh -c "test \"\$1\" = doctor" sh "$(complete_words trikvctl doc)"
    check "completes options" sh -c "test \"\$1\" = --memory-cap" sh "$(complete_words trikvd --mem)"
    check "completes codecs" sh -c "test \"\$1\" = tq3.5" sh "$(complete_words trikv-run --codec tq3.)"
}

start
check_metrics
check_page
check_pages
check_units
check_completion
kill "$runner" 2>/dev/null
runner=
kill "$daemon" && wait "$daemon"
check "trikvd ended well" test $? -eq 0
daemon=
echo "$n_passed passed, $n_failed failed"
[ "$n_failed" -eq 0 ]
