"""What was compiled with the headers of one Python serves all others: a wheel holds one module for all versions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from compiled import needs_a_compiler

ROOT = Path(__file__).parents[2]
SOURCES = ("agent/sw_agent/_sigterm_handler.c", "agent/sw_agent/export/_plain_spans.c")
CALLS = """
import os, signal, sys
import _plain_spans, _sigterm_handler
SINGLE = None, True, False
reading, writing = os.pipe()

def call():
    for attributes in (None, {"a": None}, {"a": True}):
        _plain_spans.plain_copy(attributes)
    _plain_spans.encode(None)
    _plain_spans.is_known(None, ())
    assert _sigterm_handler.register(writing) is True
    assert _sigterm_handler.unregister() is None
    before = signal.signal(signal.SIGTERM, print)
    assert _sigterm_handler.register(writing) is False
    signal.signal(signal.SIGTERM, before)

call()
before = list(map(sys.getrefcount, SINGLE))
for _ in range(1000):
    call()
print(*(sys.getrefcount(each) - count for each, count in zip(SINGLE, before)))
"""


def headers_of(version: str) -> str:
    """Return the folder of the headers of another Python, where it is installed here."""
    found = subprocess.run(["sh", ROOT / ".ci" / "find-python", version], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        pytest.skip(f"Python {version} is not installed")
    code = "import sysconfig; print(sysconfig.get_path('include'))"
    asked = subprocess.run([found.stdout.strip(), "-c", code], capture_output=True, text=True, check=True)
    folder = asked.stdout.strip()
    if not Path(folder, "Python.h").exists():
        pytest.skip(f"Python {version} has no headers here")
    return folder


@needs_a_compiler
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="None, True and False are immortal")
@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_what_is_returned_is_counted_where_nothing_is_immortal(version: str, tmp_path: Path) -> None:
    """From 3.12 on `Py_RETURN_NONE` counts nothing, not even for the stable ABI of a Python that does count."""
    headers = headers_of(version)
    for source in SOURCES:
        module = tmp_path / f"{Path(source).stem}.abi3.so"
        subprocess.run(["cc", "-shared", "-fPIC", f"-I{headers}", ROOT / source, "-o", module], check=True)
    called = subprocess.run(
        [sys.executable, "-c", CALLS], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert called.returncode == 0, called.stderr
    assert [difference for difference in map(int, called.stdout.split()) if abs(difference) > 100] == []
