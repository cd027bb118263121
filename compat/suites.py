"""Which public test suites are run under the agent, and what each of them needs."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Suite(NamedTuple):
    """The tests that a library's sdist carries.

    `requires` is installed beside the library. `tests` are the paths in the sdist that pytest runs; or `module` is the
    library's own runner, of unittest's tests. Either is told `arguments`. `known` are tests that differ and have to, by
    patterns of their names, each with the reason. Where it `looks_at_the_span`, tests fail in any span, also without an
    agent.
    """

    library: str
    requires: tuple[str, ...]
    tests: tuple[str, ...] = ()
    module: str = ""
    arguments: tuple[str, ...] = ()
    environ: Mapping[str, str] = MappingProxyType({})
    known: Mapping[str, str] = MappingProxyType({})
    looks_at_the_span: bool = False


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
        known={
            f"*::test_{name}": "asks for a program without `concurrent.futures`, which the SDK imports for the span"
            for name in ("concurrent_futures_not_imported_by_arbiter", "gunicorn_gevent_worker_patching_works")
        },
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
        # of services that are not here, and Qt, which has no display
        arguments=("-m", "not external_service", "-k", "not (etcd or mongodb or qt or rethinkdb or zookeeper)"),
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
        known={
            "*TestTraceInit::test_trace_init_default": "asks the global provider, which is the agent's, for its service"
        },
        looks_at_the_span=True,
    ),
}
