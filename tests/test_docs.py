"""The tables of the documentation cannot rot: each test that they name is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "context"))

from table import ROOT, rows


def test_every_row_names_a_test() -> None:
    assert len(rows()) > 50
    assert [mechanism for mechanism, _plain, _agent, tests in rows() if not tests] == []


def test_every_test_that_a_row_names_exists() -> None:
    named = sorted({test for *_, tests in rows() for test in tests if "::" in test})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *named],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", sorted({test for *_, tests in rows() for test in tests if "::" not in test}))
def test_every_file_of_tests_that_a_row_names_exists(file: str) -> None:
    plugin = Path(file).stem.removeprefix("test_")
    if not (ROOT / "plugins" / "sw_agent_plugins" / f"{plugin}.py").exists():
        pytest.skip(f"the plugin {plugin} is still to come")
    assert (ROOT / file).exists()
