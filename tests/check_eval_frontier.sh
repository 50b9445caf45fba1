#!/bin/sh
# trikv-eval frontier: a tiny run gives JSON with the fields that others read and numbers that fit
# each other, a report that a browser draws, and what is wrong with the question is said.
set -u

eval=${TRIKV_BUILD:-build}/bin/trikv-eval
text=models/data/heldout.txt
n_passed=0
n_failed=0
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT

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

# refused STATUS WORDS OPTIONS...
refused() {
    status=$1 words=$2
    shift 2
    # shellcheck disable=SC2016  # for the inner shell
    check "refused: $words" sh -c '"$@" >"$0.out" 2>&1; test $? -eq '"$status && grep -q '$words' \"\$0.out\"" \
        "$tmp/refused" "$eval" frontier "$@"
}

check "a tiny run" "$eval" frontier --text "$text" --context 1024 --windows 1 --needles --ratios 3,4 \
    --policies triattention+adaptive,tq4 --json "$tmp/rows.json" --html "$tmp/page.html"
cat >"$tmp/rows.py" <<'END'
import json
import sys

with open(sys.argv[1], encoding="utf-8") as f:
    found = json.load(f)
rows = found["rows"]
assert found["n_windows"] == 1 and found["n_failed"] == 0
assert [(r["policy"], r["target_ratio"]) for r in rows] == [
    ("fp16", 1), ("triattention+adaptive", 3), ("triattention+adaptive", 4), ("tq4", None)]
exact, *others = rows
token_bytes = 2 * 6 * 2 * (64 + 64)
for r in rows:
    assert r["fp16_bytes"] == 1024 * token_bytes, r
    assert abs(r["ratio"] * r["resident_bytes"] / r["fp16_bytes"] - 1) < 1e-6, r
    for name in ("recall", "recall_unseen", "recall_list", "recall_needle", "answers", "top1",
                 "attention_mass", *(f"recall_depth{i}" for i in range(1, 6))):
        assert 0 <= r[name] <= 100, (name, r)
    assert 5 < r["perplexity"] < 200 and r["kl"] >= 0 and r["repeat_nats"] > 0, r
    assert r["windows"]["recall"] == [r["recall"]] and r["spread"]["recall"] == 0, r
    assert 0 <= r["output_error"] < 2 and r["tokens_per_s"] > 0, r
assert 0.85 < exact["ratio"] <= 1 and exact["kl"] == 0 and exact["top1"] == 100
assert exact["recall"] > 90 and exact["recall_needle"] > 90, exact
assert exact["output_error"] < 1e-3 and exact["attention_mass"] > 99.9
for r in others[:2]:
    target = r["fp16_bytes"] / r["target_ratio"]
    assert 0.9 * target < r["resident_bytes"] <= target, r
    assert r["rounds"] > 0 and r["tokens_kept"] < 1024 and r["kl"] > 0.001, r
    assert r["budget_tokens"] > r["recent_tokens"] and r["codec"] == "tq4", r
assert others[0]["kl"] < others[1]["kl"] and others[0]["attention_mass"] > others[1]["attention_mass"]
tq4 = others[2]
assert tq4["tokens_kept"] == 1024 and tq4["kl"] < 0.01 and tq4["recall"] > 90, tq4
END
check "its rows" python3 "$tmp/rows.py" "$tmp/rows.json"
check "the same again" "$eval" frontier --text "$text" --context 1024 --windows 1 --needles \
    --ratios 4 --policies triattention+adaptive --json "$tmp/again.json"
cat >"$tmp/same.py" <<'END'
import json
import sys

first, again = ({(r["policy"], r["target_ratio"]): r for r in json.load(open(name))["rows"]}
                for name in sys.argv[1:])
for key, r in again.items():
    assert r["windows"] == first[key]["windows"], (r, first[key])
END
check "gives the same numbers" python3 "$tmp/same.py" "$tmp/rows.json" "$tmp/again.json"

# An unreachable ratio is a row with its reason, and the run says so; the others are there.
check "an unreachable ratio" sh -c "! '$eval' frontier --text $text --context 1024 --windows 1 \
    --ratios 4,500 --policies triattention --json '$tmp/far.json' --html '$tmp/far.html'"
cat >"$tmp/far.py" <<'END'
import json
import sys

with open(sys.argv[1], encoding="utf-8") as f:
    found = json.load(f)
exact, near, far = found["rows"]
assert found["n_failed"] == 1 and "recall" in near and "recall" not in far, found
assert "out of reach" in far["error"] and far["target_ratio"] == 500, far
END
check "is a row with its reason" python3 "$tmp/far.py" "$tmp/far.json"
check "in the report too" grep -q 'out of reach' "$tmp/far.html"

printf 'Too short a text.\n' >"$tmp/short.txt"
refused 1 'a context of 2048 needs as many' --text "$tmp/short.txt" --json "$tmp/x.json"
refused 1 'no/such.txt' --text no/such.txt --json "$tmp/x.json"
refused 1 'no/such.gguf' --text "$text" --model no/such.gguf --json "$tmp/x.json"
refused 1 'policy "nonsense"' --text "$text" --policies fp16,nonsense --json "$tmp/x.json"
refused 1 'no codec "tq9"' --text "$text" --policies triattention:tq9 --json "$tmp/x.json"
refused 1 'context of 512 tokens, expected at least' --text "$text" --context 512 \
    --policies tq4 --json "$tmp/x.json"
refused 64 'expected a number from 1 to 1000' --text "$text" --ratios 8,x --json "$tmp/x.json"
refused 64 'expected: frontier' --text "$text"
check "no rows of what is refused" test ! -e "$tmp/x.json"

# The page is one file; a browser finds its points within their plots, and no script error.
check "nothing from outside" sh -c "! grep -Ei '(src|href)=|url\(|@import|<script' '$tmp/page.html'"
browser=$(command -v chromium || command -v chromium-browser) || browser=
if [ -z "$browser" ]; then
    echo "skipped: no chromium, which opens the report"
else
    cat >"$tmp/script.html" <<'END'
<script>
let outside = 0, points = 0, plots = 0;
for (const svg of document.querySelectorAll('svg')) {
    const box = svg.getBoundingClientRect();
    plots += svg.querySelectorAll('.pt').length > 0;
    for (const pt of svg.querySelectorAll('.pt')) {
        const at = pt.getBoundingClientRect();
        points++;
        outside += !(at.width > 0 && at.left >= box.left && at.right <= box.right &&
                     at.top >= box.top && at.bottom <= box.bottom);
    }
}
const wide = document.documentElement.scrollWidth > innerWidth;
document.body.insertAdjacentHTML('beforeend', `<p>plots=${plots} points=${points} outside=${outside} wide=${wide}</p>`);
</script>
END
    sed "s|<head>|<head><script>onerror = e => document.documentElement.dataset.wrong = e</script>|" \
        "$tmp/page.html" >"$tmp/probe.html"
    cat "$tmp/script.html" >>"$tmp/probe.html"
    for size in 1280,900 500,900; do
        HOME=$tmp timeout 60 "$browser" --headless=new --no-sandbox --disable-gpu \
            --user-data-dir="$tmp/chromium" --window-size=$size --enable-logging=stderr \
            --dump-dom "file://$tmp/probe.html" >"$tmp/dom.html" 2>"$tmp/browser.log"
        check "drawn at $size" grep -q 'plots=10 points=30 outside=0 wide=false' "$tmp/dom.html"
        check "no script error at $size" sh -c "! grep -q 'data-wrong' '$tmp/dom.html' &&
            ! grep 'CONSOLE' '$tmp/browser.log'"
    done
fi

echo "$n_passed passed, $n_failed failed"
[ "$n_failed" -eq 0 ]
