#!/bin/sh
# Every call of the daemon that can fail, failing once and for good; see tests/fault/faults.c.
# FAULT_STRIDE=1 takes them all (make check-faults); without it a part, spread evenly.
set -u
cd "$(dirname "$0")/.." || exit 1
build=${TRIKV_BUILD:-build}
exec "$build/fault/faults" "$PWD/$build/fault/preload.so" "${FAULT_STRIDE:-7}"
