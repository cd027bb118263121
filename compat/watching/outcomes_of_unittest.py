"""`python -m outcomes_of_unittest FILE MODULE`: run a module that runs tests of unittest's, and note how each ends.

FILE is one object of JSON: outcomes by the names of the tests, and the exit status by the name of the module.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from unittest import TestResult

from contained_failures import pytest_sessionfinish as write_contained_failures

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

OUTCOMES = {
    "addSuccess": "passed",
    "addSkip": "skipped",
    "addExpectedFailure": "failed as expected",
    "addUnexpectedSuccess": "passed unexpectedly",
    "addFailure": "failure",
    "addError": "error",
}


def note(outcomes: dict[str, str]) -> None:
    """Let all results of unittest note the outcomes."""

    def noting(method: Callable[..., Any], outcome: str) -> Callable[..., Any]:
        def add(result: TestResult, test: Any, *args: Any) -> Any:
            outcomes[test.id()] = outcome
            return method(result, test, *args)

        return add

    def add_subtest(result: TestResult, test: Any, subtest: Any, error: Any) -> None:
        if error is not None:
            outcomes[subtest.id()] = "failure"
        original(result, test, subtest, error)

    for name, outcome in OUTCOMES.items():
        setattr(TestResult, name, noting(getattr(TestResult, name), outcome))
    original = TestResult.addSubTest
    TestResult.addSubTest = add_subtest  # type: ignore[method-assign]


if __name__ == "__main__":
    _, file, module, *_ = sys.argv
    del sys.argv[1:3]
    found: dict[str, str] = {}
    note(found)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        found[module] = f"exit {end.code}"
        raise
    finally:
        Path(file).write_text(json.dumps(found))
        write_contained_failures()
