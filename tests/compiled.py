"""The agent's modules in C, for tests: they are there wherever there was a compiler."""

from __future__ import annotations

import shutil

import pytest

needs_a_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
