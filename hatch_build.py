"""Compiles the handler of SIGTERM where there is a C compiler; without it the agent takes what Python has."""

from __future__ import annotations

import os
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from setuptools import Distribution, Extension

MODULE = "sw_agent._sigterm_handler"
SOURCE = "agent/sw_agent/_sigterm_handler.c"
STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")


class CompiledHandler(BuildHookInterface):  # type: ignore[type-arg]
    """Puts the compiled module beside its source, and into the wheel, which is then this platform's."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Compile; a wheel for all platforms comes out where that is not possible."""
        if sys.platform == "win32":
            return
        source = Path(self.root, SOURCE)
        with tempfile.TemporaryDirectory(dir=source.parent) as folder:
            try:
                compiled = _compile(source, folder)
            except Exception as error:  # no compiler, no headers, and what else compilers of all platforms say
                self.app.display_warning(f"the handler of SIGTERM is not compiled: {error}")
                return
            target = source.parent / compiled.name
            os.replace(compiled, target)  # a process may have the old one in use
        build_data["force_include"][str(target)] = f"{MODULE.partition('.')[0]}/{target.name}"
        build_data["pure_python"] = False
        if STABLE_ABI:
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"cp310-abi3-{platform}"
        else:
            build_data["infer_tag"] = True


def _compile(source: Path, folder: str) -> Path:
    extension = Extension(MODULE, [str(source)], py_limited_api=STABLE_ABI)
    command: Any = Distribution({"ext_modules": [extension]}).get_command_obj("build_ext")
    command.build_lib = command.build_temp = folder
    command.ensure_finalized()
    command.run()
    return Path(folder, command.get_ext_filename(MODULE))
