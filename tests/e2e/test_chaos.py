"""The examples with every interceptor misbehaving, wherever it can: they do what they do without the agent.

See `chaos/sw_chaos.py`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from launched import SW_PYTHON, own_environ

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICKSTART = EXAMPLES / "quickstart" / "report.py"
SHOP = EXAMPLES / "shop" / "shop.py"
CHAOS = Path(__file__).parents[1] / "chaos"


def run(folder: Path, program: Path, *under: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*under, sys.executable, str(program)],
        env=own_environ(folder, SW_EXPORT_PATH=str(folder / "traces.db"), REDIS_URL="redis://127.0.0.1:1/0", **environ),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def run_in_chaos(folder: Path, program: Path, way: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return run(folder, program, SW_PYTHON, "run", PYTHONPATH=str(CHAOS), CHAOS=way, **environ)


def failed_places(stderr: str) -> Counter[str]:
    said = "^sw-python: ERROR: (.*) failed; the program goes on without it(?:: .*)?$"
    return Counter(re.findall(said, stderr, re.MULTILINE))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    return run(tmp_path_factory.mktemp("plain"), QUICKSTART)


@pytest.mark.parametrize(
    "way", ["raise before", "raise after", "nonsense before", "nonsense after", "delay before", "delay after"]
)
def test_the_quickstart_does_not_notice_and_each_failing_place_is_said_once(
    tmp_path: Path, plain: subprocess.CompletedProcess[str], way: str
) -> None:
    log = tmp_path / "log"
    done = run_in_chaos(tmp_path, QUICKSTART, way, CHAOS_LOG=str(log))
    assert (done.returncode, done.stdout) == (0, plain.stdout)
    said = failed_places(done.stderr)
    assert said == Counter(log.read_text().splitlines() if log.exists() else ())
    if way.startswith("delay"):
        assert done.stderr == ""
    else:
        assert "plugin concurrent-futures: concurrent.futures.process:_SafeQueue.put" in said
        assert len(said) > 8


@pytest.mark.parametrize(
    ("at", "way"), [("imports", "raise after"), ("imports", "raise before"), ("pipeline", "random")]
)
def test_nor_where_import_hooks_or_the_pipeline_fail(
    tmp_path: Path, plain: subprocess.CompletedProcess[str], at: str, way: str
) -> None:
    done = run_in_chaos(tmp_path, QUICKSTART, way, CHAOS_AT=at)
    assert (done.returncode, done.stdout) == (0, plain.stdout)
    said = failed_places(done.stderr)
    assert len(said) > 4
    assert max(said.values()) <= 4  # processes
    assert "Exception ignored" not in done.stderr


def test_the_shop_takes_its_orders_in_chaos_too(tmp_path: Path) -> None:
    """Two services of aiohttp and a worker of Celery, where each call of an interceptor meets another fate."""
    done = run_in_chaos(tmp_path, SHOP, "random", CHAOS_SEED="1", CHAOS_AT="interceptors pipeline")
    assert done.returncode == 0
    events = ("customer notified", "courier not reached", "charged", "packed", "shipped")
    assert sorted(line for line in done.stdout.splitlines() if line.startswith("order")) == sorted(
        f"order {number}: {event}" for number, total in ((1, "2.20"), (2, "8.40")) for event in (total, *events)
    )
    said = failed_places(done.stderr)
    assert len(said) > 4
    assert set(said.values()) == {1}
