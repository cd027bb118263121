"""Odd interpreters, odd processes, odd folders: a program says and does what it does without the agent.

It is traced where it can be. Where something could not be recorded, one line on stderr is the agent's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from launched import PRELUDE, SW_PYTHON, own_environ
from sw_agent.export.store import read_trace, read_traces

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is odd here is Linux's")

SPANS = f"""{PRELUDE}
with S("outer"), S("inner"):
    pass
"""
TELL = """
import os, sys
print(list(map(os.fsencode, sys.argv)), sys.path[0], sys.executable, flush=True)
"""
PROGRAM = TELL + SPANS + "print('done', flush=True)\n"
NAMES = ["inner", "outer"]


class Ended(NamedTuple):
    """How a program has ended, and what it has left: files beside it, and its spans."""

    status: int
    out: bytes
    err: bytes
    files: list[str]
    spans: list[str]


def spans_in(store: Path) -> list[str]:
    if not store.exists() or not store.stat().st_size:
        return []
    traces = read_traces(str(store), limit=1000)
    return sorted(span.name for trace in traces for span in read_trace(str(store), trace.trace_id))


class Place:
    """Folders with the same programs, in which a command runs: plain in the one, under the agent in the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, str] = {"app.py": PROGRAM}

    def both(self, *command: str | bytes, shell: str = 'exec "$@"', **variables: str) -> tuple[Ended, Ended]:
        """Run a command of Python's in a shell, as `"$@"` there; `HERE` in both is the folder with the programs."""
        launcher = sys.executable, "-I", SW_PYTHON, "run", "--"
        with ThreadPoolExecutor(2) as pool:
            plain = pool.submit(self._run, "plain", (sys.executable, *command), shell, variables)
            under = pool.submit(self._run, "agent", (*launcher, sys.executable, *command), shell, variables)
        return plain.result(), under.result()

    def _run(self, name: str, command: Sequence[str | bytes], shell: str, variables: Mapping[str, str]) -> Ended:
        here = self.folder / name / "here"
        for file, text in self.files.items():
            (here / file).parent.mkdir(parents=True, exist_ok=True)
            (here / file).write_text(text)
        store = here.parent / "traces.db"
        environ = own_environ(here.parent, SW_EXPORT_PATH=str(store), SW_EXPORT_TO="local", PYTHONDONTWRITEBYTECODE="1")
        done = subprocess.run(
            [b"sh", b"-c", *(os.fsencode(word).replace(b"HERE", bytes(here)) for word in (shell, "sh", *command))],
            cwd=here,
            env={**environ, **{name: value.replace("HERE", str(here)) for name, value in variables.items()}},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=100,
        )
        out, err = (text.replace(bytes(here.parent), b"/place") for text in (done.stdout, done.stderr))
        files = sorted(str(path.relative_to(here)) for path in here.rglob("*"))
        return Ended(done.returncode, out, err, files, spans_in(store))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def assert_unchanged(plain: Ended, under: Ended, said: str = "") -> None:
    """Check that all is as without the agent, but for one line on stderr where the agent has something to say."""
    lines = under.err.splitlines(keepends=True)
    ours = [line for line in lines if line.startswith(b"sw-python: ")]
    rest = b"".join(line for line in lines if line not in ours)
    assert (under.status, under.out, rest, under.files) == (plain.status, plain.out, plain.err, plain.files)
    assert len(ours) == (1 if said else 0), under.err
    assert said.encode() in b"".join(ours)


@pytest.mark.parametrize(
    "flags",
    [
        "-OO -B -s -X frozen_modules=off",
        "-X utf8=0 -X tracemalloc=3 -X faulthandler",
        *(["-P"] if sys.version_info >= (3, 11) else []),
    ],
)
def test_whatever_pythons_options_are(place: Place, flags: str) -> None:
    plain, under = place.both(*flags.split(), "app.py", LC_ALL="C", PYTHONCOERCECLOCALE="0")

    assert_unchanged(plain, under)
    assert under.spans == NAMES


SHELLS = {
    "stdin is closed": 'exec "$@" <&-',
    "stdout is closed": 'exec "$@" >&-',
    "stderr is closed": 'exec "$@" 2>&-',
    "all three are closed": 'exec "$@" <&- >&- 2>&-',
    "the working folder is deleted": 'mkdir gone; cd gone; rmdir ../gone; exec "$@"',
    "64 MB of addresses": 'ulimit -v 65536; exec "$@"',
    "64 MB of data": 'ulimit -d 65536; exec "$@"',
    "no thread can start": 'ulimit -s 4194304; ulimit -v 1048576; exec "$@"',
    "16 open files": 'ulimit -n 16; exec "$@"',
}


@pytest.mark.parametrize("shell", SHELLS.values(), ids=SHELLS)
def test_whatever_the_process_is_given(place: Place, shell: str) -> None:
    plain, under = place.both("HERE/app.py", shell=shell)

    assert_unchanged(plain, under)
    assert under.spans == NAMES


def test_whatever_bytes_arguments_and_variables_hold(place: Place) -> None:
    odd = os.fsdecode(b"\xfe\xff")
    variables = {f"ODD{odd}": odd, "SW_AGENT_NAME": odd, "OTEL_RESOURCE_ATTRIBUTES": f"a={odd},b=c"}
    plain, under = place.both("app.py", b"\xff", "é", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", **variables)

    assert_unchanged(plain, under)
    assert under.spans == NAMES


def test_whatever_the_path_of_modules_holds(place: Place) -> None:
    plain, under = place.both("app.py", PYTHONPATH=os.fsdecode(b"/nowhere::/etc/passwd:\xff:a\nb:."))

    assert_unchanged(plain, under)
    assert under.spans == NAMES


EVERYTHING = """
import asyncio, concurrent.futures, gc, logging, multiprocessing, sys, threading

def work(number):
    with S(f"work {number}"):
        return number

async def serve():
    from aiohttp import ClientSession, web
    async def handle(request):
        await asyncio.get_running_loop().run_in_executor(None, work, 1)
        return web.Response(text="answer")
    app = web.Application()
    app.router.add_get("/", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/") as response:
            print(await response.text())
    await runner.cleanup()

def publish():
    from celery import Celery
    app = Celery("app", broker="memory://", backend="cache+memory://")
    @app.task
    def add(x, y):
        return x + y
    add.delay(1, 2)
    print(add.apply((1, 2)).get())

if __name__ == "__main__":
    with S("all"):
        thread = threading.Thread(target=work, args=(2,))
        thread.start()
        thread.join()
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            print(list(pool.map(work, range(3))))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.map(work, range(3)))
        logging.getLogger("app").warning("a warning of the program's")
        asyncio.run(serve())
        publish()
    gc.collect()
"""


@pytest.mark.timeout(110)
def test_where_every_warning_is_an_error_there_is_none(place: Place) -> None:
    """Also none that Python only prints, such as that of a file which nobody has closed."""
    place.files["app.py"] = PRELUDE + EVERYTHING
    flags = "-W", "error", "-bb", "-X", "tracemalloc=1", "-X", "warn_default_encoding"
    plain, under = place.both(*flags, "app.py", PYTHONWARNINGS="error")

    assert_unchanged(plain, under)
    assert plain.status == 0
    assert {"all", "work 0", "work 1", "work 2", "GET /", "run/app.add"} - set(under.spans) <= {"GET /", "run/app.add"}


# Modules beside the program


HIDDEN = "json", "sqlite3", "sw_agent_plugins"  # which no API of OpenTelemetry imports


def test_modules_beside_the_program_that_hide_pythons_are_not_run_for_the_agent(place: Place) -> None:
    place.files |= {f"{name}.py": f"print('{name} beside the program')" for name in HIDDEN}
    plain, under = place.both("app.py")

    assert b"beside" not in plain.out
    assert_unchanged(plain, under)
    assert under.spans == NAMES


def test_what_the_agent_has_imported_first_is_not_taken_for_the_programs_own(place: Place) -> None:
    names = "random", "platform", "queue", "signal", "uuid", "copy"
    place.files |= {f"{name}.py": "value = __file__" for name in names}
    place.files["app.py"] = f"import {', '.join(names)}\nprint({', '.join(f'{name}.value' for name in names)})"
    plain, under = place.both("app.py", SW_AGENT_PROGRAM_SPAN="true")

    assert_unchanged(plain, under)
    assert under.spans == ["app.py"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="3.10 raises with the traceback that was caught")
def test_an_import_that_fails_has_no_line_of_the_agents_in_its_traceback(place: Place) -> None:
    place.files = {
        "app.py": "try:\n    import opentelemetry.context\nexcept ImportError:\n    import opentelemetry.trace",
        "opentelemetry/__init__.py": "",
        "opentelemetry/context.py": "import nothing_of_that_name",
        "opentelemetry/trace.py": "def fail():\n    1 / 0\nfail()",
    }
    plain, under = place.both("app.py")

    assert b"ZeroDivisionError" in plain.err
    assert_unchanged(plain, under)


# Where spans cannot be recorded


LOSSES = {
    "no folder can be made": (
        SPANS,
        {"SW_EXPORT_PATH": "", "XDG_STATE_HOME": "/proc/none"},
        "not written",
    ),
    "no module is found": (
        PRELUDE + "import sys; sys.path.clear()\n" + SPANS,
        {},
        "an output cannot be opened",
    ),
}


@pytest.mark.parametrize(("program", "variables", "said"), LOSSES.values(), ids=LOSSES)
def test_what_cannot_be_recorded_costs_one_line(
    place: Place, program: str, variables: dict[str, str], said: str
) -> None:
    place.files["app.py"] = program
    plain, under = place.both("app.py", **variables)

    assert_unchanged(plain, under, said)


def test_a_process_that_has_used_up_all_its_files_is_not_aborted(place: Place) -> None:
    """A thread that is still there at the end makes glibc load a library, which then aborts the process."""
    place.files["app.py"] = f"""{PRELUDE}
import os
try:
    while True:
        os.dup(0)
except OSError:
    pass
with S("lost"):
    print("done", flush=True)
"""
    plain, under = place.both("app.py", shell='ulimit -n 64; exec "$@"', SW_EXPORT_EXIT_TIMEOUT="20")

    assert (plain.status, plain.out) == (under.status, under.out) == (0, b"done\n")
    assert b"spans dropped: 1 not sent in time" in under.err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
@pytest.mark.parametrize(
    "mount",
    ["mount -t tmpfs -o ro none HERE/home", "mount -t tmpfs -o size=8k none HERE/home"],
    ids=["read only", "full"],
)
def test_a_disk_that_is_full_or_read_only_costs_one_line(place: Place, mount: str) -> None:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("no namespace can be made here")
    place.files["home/.keep"] = ""
    shell = f"""exec unshare --mount sh -c '{mount}; exec "$@"' sh "$@" """
    plain, under = place.both("app.py", shell=shell, SW_EXPORT_PATH="", HOME="HERE/home")

    assert_unchanged(plain, under, "spans dropped: 2 not written to the local store")


# Interpreters within the process


INTERPRETERS = """
CODE = "from opentelemetry import trace; trace.get_tracer('t').start_span('within').end(); print('within', flush=True)"
try:
    import _interpreters
    for kind in "legacy", "isolated":
        interpreter = _interpreters.create(kind)
        print(_interpreters.exec(interpreter, CODE))
        _interpreters.destroy(interpreter)
except ImportError:
    import _xxsubinterpreters as _interpreters
    for isolated in False, True:
        interpreter = _interpreters.create(isolated=isolated)
        _interpreters.run_string(interpreter, CODE)
        _interpreters.destroy(interpreter)
"""


def test_interpreters_within_the_process_are_left_alone_before_python_3_14(place: Place) -> None:
    """They must not have a thread when they end: Python 3.10 and 3.11 abort then."""
    place.files["app.py"] = SPANS + INTERPRETERS
    plain, under = place.both("app.py")

    assert_unchanged(plain, under)
    assert under.spans == sorted(NAMES + (["within"] * 2 if sys.version_info >= (3, 14) else []))
