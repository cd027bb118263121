"""Every way to hand work over, in whole programs: the table in docs/context.md says whose context the work has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launched import SW_PYTHON, own_environ

sys.path.insert(0, str(Path(__file__).parent))

from table import ways

PROGRAM = str(Path(__file__).with_name("ways.py"))
SAID = ways()


def printed_by(folder: Path, *command: str) -> dict[str, Any]:
    done = subprocess.run(
        [*command, sys.executable, "-W", "ignore::DeprecationWarning", PROGRAM],
        env={**own_environ(folder), "SW_EXPORT_TO": "none"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def natively(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return printed_by(tmp_path_factory.mktemp("natively"))


@pytest.fixture(scope="module")
def under_the_agent(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return printed_by(tmp_path_factory.mktemp("traced"), SW_PYTHON, "run", "--")


@pytest.mark.parametrize("way", SAID)
def test_work_has_the_context_that_the_table_says(
    way: str, natively: dict[str, Any], under_the_agent: dict[str, Any]
) -> None:
    if way == "TaskGroup" and sys.version_info < (3, 11):
        pytest.skip("this Python has none")
    variable, span = SAID[way]
    assert natively[way] == [variable, None]
    assert under_the_agent[way] == [variable, span]


def test_every_way_is_in_the_table(under_the_agent: dict[str, Any]) -> None:
    assert under_the_agent.keys() <= SAID.keys()
