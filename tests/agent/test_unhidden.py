"""Imports for the agent find Python's own modules behind those of the program that hide them."""

from __future__ import annotations

import importlib
import sys
import threading
from pathlib import Path

import pytest

from sw_agent._unhidden import Unhidden


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a program's folder, first on the path, with modules of its own and an empty folder called `colorsys`."""
    for name in ("wave", "mine", "msvcrt", "sw_agent_plugins"):
        (tmp_path / f"{name}.py").write_text("the_programs = True\n")
    (tmp_path / "colorsys").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("wave", "mine", "msvcrt", "colorsys"):
        monkeypatch.setitem(sys.modules, name, sys)  # so that what is there now is put back, also where that is nothing
        del sys.modules[name]
    return str(tmp_path)


def is_the_programs(name: str) -> bool:
    return hasattr(importlib.import_module(name), "the_programs")


def test_a_module_that_the_program_hides_is_pythons_inside_and_the_programs_afterwards(folder: str) -> None:
    with Unhidden(folder):
        assert not is_the_programs("wave")
    assert "wave" not in sys.modules
    assert is_the_programs("wave")


def test_what_hides_nothing_is_imported_for_the_program_too(folder: str) -> None:
    with Unhidden(folder):
        assert is_the_programs("mine")
        assert is_the_programs("msvcrt")  # Python's is on Windows only
        assert hasattr(importlib.import_module("colorsys"), "rgb_to_hsv")
    assert {"mine", "colorsys"} <= set(sys.modules)


def test_within_another_one_it_does_nothing_and_changes_nothing_for_other_threads(folder: str) -> None:
    finders = list(sys.meta_path)
    found = []
    with Unhidden(folder):
        with Unhidden(folder):
            pass
        thread = threading.Thread(target=lambda: found.append(is_the_programs("wave")))
        thread.start()
        thread.join()
    assert found == [True]
    assert sys.meta_path == finders


def test_the_agents_own_modules_are_found_behind_the_programs(folder: str) -> None:
    spec = Unhidden(folder).find_spec("sw_agent_plugins")
    assert spec is not None
    assert spec.origin is not None
    assert not spec.origin.startswith(folder)
