"""Which public test suites are run under the agent, and what each of them needs."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Suite(NamedTuple):
    """The tests that a library's sdist carries.

    `requires` is installed beside the library. `tests` are the paths in the sdist that pytest runs; or `module` is the
    library's own runner, of unittest's tests. Either is told `arguments`. `known` are tests that differ and have to, by
    patterns of their names, each with the reason.
    """

    library: str
    requires: tuple[str, ...]
    tests: tuple[str, ...] = ()
    module: str = ""
    arguments: tuple[str, ...] = ()
    environ: Mapping[str, str] = MappingProxyType({})
    known: Mapping[str, str] = MappingProxyType({})


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
    "kombu": Suite(
        library="kombu[msgpack,redis,sqlalchemy,yaml]",
        requires=("boto3", "hypothesis", "pycurl", "pytest-freezer"),
        tests=("t/unit",),
        # of services that are not here
        arguments=tuple(f"--ignore=t/unit/transport/test_{name}.py" for name in ("azurestoragequeues", "gcpubsub")),
    ),
    "billiard": Suite(library="billiard", requires=("psutil",), tests=("t/unit",)),
    "anyio": Suite(
        library="anyio[trio]",
        requires=("blockbuster", "hypothesis", "psutil", "pytest-mock", "trustme", "truststore", "uvloop"),
        tests=("tests",),
        arguments=("-m", "not network"),
    ),
    "asgiref": Suite(library="asgiref", requires=("packaging", "pytest-asyncio"), tests=("tests",)),
    "uvicorn": Suite(
        library="uvicorn[standard]",
        requires=("a2wsgi", "httpx2", "pytest-mock", "trustme", "wsproto", "zttp"),
        tests=("tests",),
        arguments=("-o", "addopts=", "--ignore=tests/benchmarks"),
    ),
    "gunicorn": Suite(
        library="gunicorn[gevent,http2,tornado]",
        requires=("httpx[http2]", "inotify", "pytest-asyncio", "uvloop"),
        tests=("tests",),
        arguments=("-o", "addopts=--assert=plain", "--ignore=tests/docker"),
    ),
    "tornado": Suite(
        library="tornado",
        requires=("pycurl", "twisted"),
        module="tornado.test",  # the installed one, which is the sdist's; it also fails where anything is on stderr
        environ={"ASYNC_TEST_TIMEOUT": "25"},  # as in its tox.ini
    ),
    "apscheduler": Suite(
        library="apscheduler[gevent,redis,sqlalchemy,tornado,twisted]",
        requires=("anyio", "pytz"),
        tests=("tests",),
        arguments=("-m", "not external_service"),
    ),
    "wrapt": Suite(
        library="wrapt",
        requires=("setuptools",),
        tests=("tests/core", "tests/stress"),
    ),
    "opentelemetry-sdk": Suite(
        library="opentelemetry-sdk",
        requires=("opentelemetry-test-utils>=0.60b0", "psutil"),
        tests=("tests",),
    ),
}
