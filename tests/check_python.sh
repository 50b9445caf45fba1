#!/bin/sh
# The Python package on a trikvd of its own, with the system's Python and numpy.
set -u

python=${PYTHON:-/usr/bin/python3}
if ! "$python" -c 'import numpy' 2>/dev/null; then
    echo "skipped: $python has no numpy (python3-numpy)"
    exit 0
fi
case ${TRIKV_BUILD:-build} in
*asan* | *tsan* | *fuzz*)
    echo "skipped: a library with a sanitizer cannot be loaded into Python"
    exit 0
    ;;
esac
if command -v mypy >/dev/null; then
    mypy --strict --ignore-missing-imports --no-error-summary --cache-dir=/dev/null bindings/python/trikv || {
        echo "0 passed, 1 failed"
        exit 1
    }
fi
# Without -B the interpreter would leave folders beside the sources.
exec "$python" -B -W error tests/python
