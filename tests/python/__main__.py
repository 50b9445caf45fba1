"""Run the tests of this folder; the last line is "N passed, M failed", as tests/run reads it."""

from __future__ import annotations

import sys
import unittest
from pathlib import Path

import service  # noqa: F401  makes the package importable


def main() -> int:
    loader = unittest.defaultTestLoader
    names = sys.argv[1:] or sorted(p.stem for p in Path(__file__).parent.glob("test_*.py"))
    suite = loader.loadTestsFromNames(names)
    n = suite.countTestCases()
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=1).run(suite)
    for test, reason in result.skipped:
        print(f"skipped: {test}: {reason}")
    n_bad = len({str(t) for t, _ in result.failures + result.errors})
    print(f"{max(n - n_bad - len(result.skipped), 0)} passed, {n_bad} failed")
    return int(n_bad > 0)


sys.exit(main())
