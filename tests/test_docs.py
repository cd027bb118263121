"""The tables of the documentation cannot rot: each test that they name is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "context"))

from table import ROOT, rows


def test_every_row_names_a_test() -> None:
    assert len(rows()) > 50
    assert [mechanism for mechanism, _plain, _agent, tests in rows() if not tests] == []


def test_every_test_that_a_row_names_exists() -> None:
    named = sorted({test for *_, tests in rows() for test in tests})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *named],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
