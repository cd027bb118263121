"""Compiles what is written in C where there is a compiler; without it the agent does the same by slower means."""

from __future__ import annotations

import os
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from setuptools import Distribution, Extension

ROOT = "agent"
SOURCES = ("sw_agent/_sigterm_handler.c", "sw_agent/export/_plain_spans.c")
STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")


class CompiledModules(BuildHookInterface):  # type: ignore[type-arg]
    """Puts the compiled modules beside their sources, and into the wheel, which is then this platform's."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Compile; a wheel for all platforms comes out where that is not possible."""
        if sys.platform == "win32":
            return
        root = Path(self.root, ROOT)
        with tempfile.TemporaryDirectory(dir=root) as folder:
            try:
                compiled = [_compile(root, source, folder) for source in SOURCES]
            except Exception as error:  # no compiler, no headers, and what else compilers of all platforms say
                self.app.display_warning(f"the modules in C are not compiled: {error}")
                return
            for module in compiled:
                target = root / module.relative_to(folder)
                os.replace(module, target)  # a process may have the old one in use
                build_data["force_include"][str(target)] = str(target.relative_to(root))
        build_data["pure_python"] = False
        if STABLE_ABI:
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"cp310-abi3-{platform}"
        else:
            build_data["infer_tag"] = True


def _compile(root: Path, source: str, folder: str) -> Path:
    module = source.removesuffix(".c").replace("/", ".")
    extension = Extension(module, [str(root / source)], py_limited_api=STABLE_ABI)
    command: Any = Distribution({"ext_modules": [extension]}).get_command_obj("build_ext")
    command.build_lib = command.build_temp = folder
    command.ensure_finalized()
    command.run()
    return Path(folder, command.get_ext_filename(module))
