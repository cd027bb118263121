"""Which public test suites are run under the agent, and what each of them needs."""

from __future__ import annotations

from typing import NamedTuple


class Suite(NamedTuple):
    """The tests that a library's sdist carries.

    `requires` is installed beside the library. `tests` are the paths in the sdist that are run, `arguments` what pytest
    is told beside them.
    """

    library: str
    requires: tuple[str, ...]
    tests: tuple[str, ...]
    arguments: tuple[str, ...] = ()


SUITES = {
    "celery": Suite(
        library="celery[auth,gevent,msgpack,redis,sqlalchemy,tblib,yaml]",
        requires=(
            "pytest-celery>=1.2",
            "pytest-subtests",
            "pytest-click",
            "pytest-order",
            "freezegun",
            "pydantic",
            "moto[dynamodb,s3]",
        ),
        tests=("t/unit",),
        # of services that are not here
        arguments=tuple(f"--ignore=t/unit/backends/test_{name}.py" for name in ("azureblockblob", "gcs", "mongodb")),
    ),
    "aiohttp": Suite(
        library="aiohttp[speedups]",
        requires=(
            *(
                "blockbuster",
                "coverage",
                "freezegun",
                "isal",
                "proxy.py",
                "pytest-codspeed",
                "pytest-cov",
                "pytest-mock",
            ),
            *("pytest-xdist", "re-assert", "trustme", "zlib_ng"),
        ),
        tests=("tests",),
        arguments=("-o", "addopts=", "-n", "2", "--ignore=tests/autobahn", "--ignore-glob=tests/test_benchmarks_*"),
    ),
}
