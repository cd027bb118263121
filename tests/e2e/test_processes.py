"""Programs of several processes under `sw-python run`: which spans are in the store, how often, under which parent."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from launched import SW_PYTHON, own_environ
from sw_agent.export.store import StoredSpan, read_trace, read_traces

PRELUDE = """
import multiprocessing, os, signal, sys, threading, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.pool import ThreadPool
from opentelemetry import trace

S = trace.get_tracer("program").start_as_current_span
ids = sys.argv[1:]

def work(name):
    with S(f"in {name}"):
        return name

"""

START_METHODS = [method for method in ("fork", "spawn", "forkserver") if hasattr(os, "fork") or method == "spawn"]
each_start_method = pytest.mark.parametrize("method", START_METHODS)


class Ran:
    """A program that has ended, and the spans that it left in the store."""

    def __init__(self, done: subprocess.CompletedProcess[str], store: Path) -> None:
        self.status = done.returncode
        self.stdout = done.stdout
        self.stderr = done.stderr
        self.spans: list[StoredSpan] = []
        if store.exists():
            for trace in read_traces(str(store), limit=10_000):
                self.spans += read_trace(str(store), trace.trace_id)

    def named(self, name: str) -> StoredSpan:
        """Return the span of that name; exactly one there must be."""
        found = [span for span in self.spans if span.name == name]
        assert len(found) == 1, (name, sorted(span.name for span in self.spans), self.stderr)
        return found[0]

    def parent_of(self, name: str) -> str | None:
        parent_id = self.named(name).parent_id
        return next((span.name for span in self.spans if span.span_id == parent_id), "lost") if parent_id else None

    @property
    def counts(self) -> Counter[str]:
        return Counter(span.name for span in self.spans)

    def pid_of(self, name: str) -> int:
        return int(self.named(name).resource["process.pid"])


Run = Callable[..., Ran]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a function that runs a program, which must end as told, and reads its spans."""

    def run_program(program: str, *arguments: str, status: int = 0, agent: bool = True, **variables: str) -> Ran:
        file, store = tmp_path / "program.py", tmp_path / "traces.db"
        store.unlink(missing_ok=True)
        file.write_text(PRELUDE + program)
        environ = own_environ(tmp_path, SW_EXPORT_TO="local", SW_EXPORT_PATH=str(store)) | variables
        command = [*([SW_PYTHON, "run"] if agent else []), sys.executable, str(file), *arguments]
        done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=100)
        assert done.returncode == status, done.stderr
        return Ran(done, store)

    return run_program


@each_start_method
def test_a_process_is_the_child_of_the_span_that_started_it(run: Run, method: str) -> None:
    ran = run(
        """
if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with S("builder"):
        processes = {name: context.Process(target=work, args=(name,)) for name in ("first", "second", "third")}
    for name in ("first", "second"):
        with S(name):
            processes[name].start()
    processes["third"].start()
    for process in processes.values():
        process.join()
    print([process.exitcode for process in processes.values()])
""",
        method,
    )
    assert (ran.stdout, ran.stderr) == ("[0, 0, 0]\n", "")
    assert set(ran.counts.values()) == {1}
    assert [ran.parent_of(f"in {name}") for name in ("first", "second", "third")] == ["first", "second", None]
    assert len({ran.pid_of(name) for name in ("first", "in first", "in second", "in third")}) == 4


@each_start_method
def test_a_pools_tasks_are_the_children_of_their_submitters_in_one_worker(run: Run, method: str) -> None:
    ran = run(
        """
WAYS = {
    "apply": lambda pool, names: [pool.apply(work, (name,)) for name in names],
    "apply_async": lambda pool, names: [pool.apply_async(work, [name]).get() for name in names],
    "map": lambda pool, names: pool.map(work, names),
    "map_async": lambda pool, names: pool.map_async(work, names, chunksize=1).get(),
    "starmap": lambda pool, names: pool.starmap(work, [(name,) for name in names]),
    "imap": lambda pool, names: list(pool.imap(work, names)),
    "imap chunked": lambda pool, names: list(pool.imap(work, names, chunksize=2)),
    "imap_unordered": lambda pool, names: list(pool.imap_unordered(work, names)),
}
if __name__ == "__main__":
    with S("opener"):
        pool = multiprocessing.get_context(sys.argv[1]).Pool(1)
    for way, submit in WAYS.items():
        for number in "1", "2":
            with S(f"{way} {number}"):
                submit(pool, [f"{way} {number} {item}" for item in "ab"])
        submit(pool, [f"{way} nobody"])
    pool.close()
    pool.join()
    print(*WAYS, sep=",")
""",
        method,
    )
    ways = ran.stdout.strip().split(",")
    assert set(ran.counts.values()) == {1}
    assert len(ran.spans) == 1 + len(ways) * (2 + 2 * 2 + 1)
    for way in ways:
        for number in "12":
            for item in "ab":
                assert ran.parent_of(f"in {way} {number} {item}") == f"{way} {number}"
        assert ran.parent_of(f"in {way} nobody") is None
    assert len({span.resource["process.pid"] for span in ran.spans if span.name.startswith("in ")}) == 1
    assert ran.stderr == ""


@each_start_method
@pytest.mark.parametrize("end", ["with", "terminate", "close", "garbage"])
def test_all_spans_of_a_pool_arrive_however_it_ends(run: Run, method: str, end: str) -> None:
    ran = run(
        """
if __name__ == "__main__":
    method, end = sys.argv[1:]
    pool = multiprocessing.get_context(method).Pool(3)
    with S("submitter"):
        if end == "with":
            with pool:
                pool.map(work, range(60), chunksize=1)
        else:
            pool.map(work, range(60), chunksize=1)
            if end in ("terminate", "close"):
                getattr(pool, end)()
                pool.join()
    if end == "garbage":
        import warnings
        warnings.simplefilter("ignore")
        del pool
""",
        method,
        end,
    )
    assert ran.counts == Counter({"submitter": 1, **{f"in {number}": 1 for number in range(60)}})
    assert {ran.parent_of(f"in {number}") for number in range(60)} == {"submitter"}


def test_of_many_pools_that_are_terminated_each_one_ends(run: Run) -> None:
    """SIGTERM must kill a worker also where it comes in the midst of a fork, or of waiting for a lock."""
    ran = run(
        """
if __name__ == "__main__":
    for number in range(60):
        with S(f"submitter {number}"), multiprocessing.get_context("fork").Pool(3) as pool:
            pool.map(work, range(4), chunksize=1)
"""
    )
    assert (len(ran.spans), ran.stderr) == (60 * 5, "")


@each_start_method
def test_workers_that_are_replaced_lose_no_span(run: Run, method: str) -> None:
    ran = run(
        """
if __name__ == "__main__":
    with S("submitter"), multiprocessing.get_context(sys.argv[1]).Pool(1, maxtasksperchild=1) as pool:
        for number in range(4):
            pool.apply(work, (number,))
""",
        method,
    )
    assert ran.counts == Counter({"submitter": 1, **{f"in {number}": 1 for number in range(4)}})
    assert {ran.parent_of(f"in {number}") for number in range(4)} == {"submitter"}
    assert len({ran.pid_of(f"in {number}") for number in range(4)}) == 4


def test_a_fork_inside_a_span_exports_it_once(run: Run) -> None:
    ran = run(
        """
with S("inherited") as span:
    pid = os.fork()
    if pid == 0:
        work("child")
        trace.get_current_span().end()
        sys.exit(0)
    os.waitpid(pid, 0)
    work("parent")
"""
    )
    assert ran.counts == Counter(["inherited", "in child", "in parent"])
    assert ran.parent_of("in child") == ran.parent_of("in parent") == "inherited"
    assert ran.pid_of("in child") != ran.pid_of("inherited") == ran.pid_of("in parent")


@each_start_method
def test_pools_of_both_libraries_and_a_process_are_one_trace(run: Run, method: str) -> None:
    ran = run(
        """
def nested(name):
    with S(name):
        process = context.Process(target=work, args=("process",))
        process.start()
        process.join()

context = multiprocessing.get_context(sys.argv[1])
if __name__ == "__main__":
    with S("root"), context.Pool(1) as pool, ProcessPoolExecutor(1, context) as executor:
        with S("to the executor"):
            executor.submit(work, "executor").result()
        with S("to the pool"):
            pool.apply(work, ("pool",))
        with S("to the executor again"):
            executor.submit(nested, "nested").result()
""",
        method,
    )
    assert len({span.trace_id for span in ran.spans}) == 1
    assert set(ran.counts.values()) == {1}
    assert ran.parent_of("in executor") == "to the executor"
    assert ran.parent_of("in pool") == "to the pool"
    assert ran.parent_of("nested") == "to the executor again"
    assert ran.parent_of("in process") == "nested"


@pytest.mark.parametrize("preload", [[], ["__main__", "opentelemetry.sdk.trace"]], ids=["", "preloaded"])
def test_the_default_start_method_needs_no_word_about_it(run: Run, preload: list[str]) -> None:
    ran = run(
        f"""
if __name__ == "__main__":
    multiprocessing.set_forkserver_preload({preload})
    pool, executor = multiprocessing.Pool(1), ProcessPoolExecutor(1)
    for round in "first", "second":
        with S(round):
            pool.apply(work, (f"pool, {{round}}",))
            executor.submit(work, f"executor, {{round}}").result()
            process = multiprocessing.Process(target=work, args=(f"process, {{round}}",))
            process.start()
            process.join()
    pool.terminate()
    pool.join()
    executor.shutdown()
    print(multiprocessing.get_start_method())
"""
    )
    method = "forkserver" if sys.version_info >= (3, 14) and sys.platform == "linux" else ran.stdout.strip()
    assert ran.stdout == f"{method}\n"
    if method != "fork":  # Python says since 3.12 that this program forks where it has threads
        assert ran.stderr == ""
    assert set(ran.counts.values()) == {1}
    assert len(ran.spans) == 8
    for where in "pool", "executor", "process":
        for round in "first", "second":
            assert ran.parent_of(f"in {where}, {round}") == round


@each_start_method
def test_a_span_for_each_task_and_process_is_one_click(run: Run, method: str) -> None:
    ran = run(
        """
def crash(code):
    sys.exit(code)

class Own(multiprocessing.get_context(sys.argv[1] if sys.argv[1:] else None).Process):
    def run(self):
        work("own")

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with S("root"):
        with context.Pool(1) as pool:
            pool.apply(work, ("task",))
            pool.map(len, ["ab"])
            try:
                pool.apply(int, ("x",))
            except ValueError:
                pass
        for process in context.Process(target=crash, args=(3,)), Own(), context.Process(target=crash, args=(0,)):
            process.start()
            process.join()
        with context.Manager() as manager:
            manager.list([1])
""",
        method,
        SW_PLUGIN_MULTIPROCESSING_SPANS="true",
    )
    assert ran.counts == Counter(["root", "in task", "in own", "work", "len", "int", "crash", "crash", "Own"])
    for name in ("work", "len", "int", "Own"):
        assert ran.parent_of(name) == "root"
        assert ran.named(name).attributes["sw.wait_ms"] >= 0
        assert ran.named(name).attributes["code.function.name"].endswith(f".{name}") or name in ("len", "int")
        assert ran.pid_of(name) != ran.pid_of("root")
    assert (ran.parent_of("in task"), ran.parent_of("in own")) == ("work", "Own")
    assert (ran.named("int").status, ran.named("work").status) == ("ERROR", "UNSET")
    crashes = {span.attributes.get("process.exit.code"): span.status for span in ran.spans if span.name == "crash"}
    assert crashes == {3: "ERROR", None: "UNSET"}


@each_start_method
@pytest.mark.parametrize("crash", ["os._exit(7)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_child_that_crashes_holds_nobody_up(run: Run, method: str, crash: str) -> None:
    ran = run(
        f"""
def crash(_=None):
    {crash}

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with S("starter"):
        process = context.Process(target=crash)
        process.start()
        process.join()
    with S("submitter"), ProcessPoolExecutor(1, context) as executor:
        try:
            executor.submit(crash).result()
        except Exception as error:
            print(process.exitcode, type(error).__name__)
    with S("after"), context.Pool(1) as pool:
        pool.apply_async(crash)
        print(pool.apply_async(work, ("new worker",)).get(60))
""",
        method,
    )
    expected = "7" if "exit" in crash else "-9"
    assert ran.stdout == f"{expected} BrokenProcessPool\nnew worker\n"
    assert ran.counts == Counter(["starter", "submitter", "after", "in new worker"])


@each_start_method
def test_a_process_that_is_terminated_has_sent_what_ended_before(run: Run, method: str) -> None:
    ran = run(
        """
def work_and_wait(ready):
    work("time")
    ready.set()
    threading.Event().wait()

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with S("starter"):
        ready = context.Event()
        process = context.Process(target=work_and_wait, args=(ready,))
        process.start()
        ready.wait()
        process.terminate()
        process.join()
    print(process.exitcode)
""",
        method,
    )
    assert ran.stdout == "-15\n"
    assert ran.counts == Counter(["starter", "in time"])
    assert ran.parent_of("in time") == "starter"


FAILURES = """
def fail(*_):
    raise ValueError("on purpose")

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with S("root"):
        process = context.Process(target=fail, name="failing")
        process.start()
        process.join()
        with context.Pool(1) as pool:
            for way in lambda: pool.apply(fail), lambda: pool.map(fail, [1]), lambda: list(pool.imap(fail, [1])):
                try:
                    way()
                except ValueError as error:
                    print(error.__cause__)
        for name, target in ("exiting", sys.exit), ("named exit", lambda: sys.exit("bye")):
            if sys.argv[1] == "fork" or name == "exiting":
                process = context.Process(target=target, name=name)
                process.start()
                process.join()
                print(name, process.exitcode)
"""


@each_start_method
@pytest.mark.parametrize("spans", ["true", "false"])
def test_what_fails_says_so_as_without_the_agent(run: Run, method: str, spans: str) -> None:
    plain = run(FAILURES, method, agent=False)
    traced = run(FAILURES, method, SW_PLUGIN_MULTIPROCESSING_SPANS=spans)
    assert "on purpose" in plain.stderr
    assert (traced.stdout, traced.stderr) == (plain.stdout, plain.stderr)


@each_start_method
def test_switched_off_the_plugin_leaves_the_library_untouched(run: Run, method: str) -> None:
    ran = run(
        """
def seen(name):
    work(name)
    pool, process = multiprocessing.pool, multiprocessing.process.BaseProcess
    functions = pool.worker, pool.ApplyResult._set, process._bootstrap, process.start
    return [type(function).__name__ + function.__code__.co_filename.rpartition("/")[2] for function in functions]

if __name__ == "__main__":
    with S("submitter"), multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
        print(pool.apply(seen, ("task",)) == seen("here"), seen("again"))
""",
        method,
        SW_AGENT_DISABLE_PLUGINS="multiprocessing",
    )
    files = ["functionpool.py"] * 2 + ["functionprocess.py"] * 2
    assert ran.stdout == f"True {files}\n"


def test_pools_whose_workers_are_forked_at_the_same_time_do_not_wait_for_each_other(run: Run) -> None:
    for _ in range(5):
        ran = run(
            """
if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    with S("root"):
        first = context.Pool(2)
        results = first.map_async(work, range(4))
        second = context.Pool(4)
        print(len(second.map(work, range(8))), len(results.get()))
        first.terminate()
        second.terminate()
""",
            "fork",
        )
        assert ran.stdout == "8 4\n"
