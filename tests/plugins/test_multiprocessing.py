"""The multiprocessing plugin beyond the contract: callbacks, lazy iterables, and what belongs to nobody."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.dummy
import os
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import spawn
from multiprocessing.managers import BaseManager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import contract
import pytest
from opentelemetry import trace

import sw_agent_plugins.threading
from sw_agent.snapshot import capture
from sw_agent.testing import installed
from sw_agent_plugins.multiprocessing import Job, plugin

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="these use forked processes")


def span(name: str = "submitter") -> Any:
    return trace.get_tracer("test").start_as_current_span(name)


def ids(of: Any) -> tuple[int, int]:
    context = of.get_span_context()
    return context.trace_id, context.span_id


def fork_pool(*args: Any) -> Any:
    return multiprocessing.get_context("fork").Pool(1, *args)


def thread_pool(*args: Any) -> Any:
    return ThreadPool(1, *args)


each_pool = pytest.mark.parametrize("make_pool", [fork_pool, thread_pool], ids=["processes", "threads"])


@pytest.fixture
def both_plugins() -> Iterator[None]:
    """Install the threading plugin too: it is what starts the pools' own threads clean."""
    with ExitStack() as stack:
        stack.enter_context(installed(plugin))
        stack.enter_context(installed(sw_agent_plugins.threading.plugin))
        yield


Submit = Callable[..., Any]
CALLBACKS: dict[str, Submit] = {
    "apply_async": lambda pool, function, **callbacks: pool.apply_async(function, (7,), **callbacks),
    "map_async": lambda pool, function, **callbacks: pool.map_async(function, [7, 8, 9], chunksize=1, **callbacks),
    "starmap_async": lambda pool, function, **callbacks: pool.starmap_async(function, [(7,), (8,)], **callbacks),
}


@each_pool
@pytest.mark.parametrize("submit", CALLBACKS.values(), ids=CALLBACKS)
@pytest.mark.parametrize(("function", "kind"), [(abs, "callback"), (contract.fail, "error_callback")])
@pytest.mark.usefixtures("both_plugins")
def test_a_callback_runs_in_the_context_of_who_registered_it(
    make_pool: Submit, submit: Submit, function: Callable[..., Any], kind: str
) -> None:
    seen: list[Any] = []
    with make_pool() as pool:
        for name in ("first", "second"):
            with span(name) as submitter:
                result = submit(pool, function, **{kind: lambda _: seen.append(contract.current_span())})
            result.wait(60)
            assert seen.pop() == ids(submitter)
        submit(pool, function, **{kind: lambda _: seen.append(contract.context_is_empty())}).wait(60)
        assert seen == [True]


@each_pool
@pytest.mark.usefixtures("both_plugins")
def test_what_a_callback_leaves_attached_is_not_seen_by_the_next(make_pool: Submit) -> None:
    seen: list[bool] = []

    def leave(_: object) -> None:
        contract.leave_a_span_attached()

    with make_pool() as pool:
        pool.apply_async(abs, (7,), callback=leave).wait(60)
        pool.apply_async(abs, (7,), callback=lambda _: seen.append(contract.context_is_empty())).wait(60)
    assert seen == [True]


@contextmanager
def waiting(pool: Any, count: int = 1) -> Iterator[Any]:
    """Keep the threads of a `ThreadPool` at work."""
    go_on = threading.Event()
    results = [pool.apply_async(go_on.wait, (60,)) for _ in range(count)]
    try:
        yield go_on
    finally:
        go_on.set()
        for result in results:
            result.wait(60)


class PoolOfItsOwn(ThreadPool):
    @staticmethod
    def Process(_context: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N802  it is the library's name
        return multiprocessing.dummy.Process(*args, **kwargs)


@pytest.mark.usefixtures("both_plugins")
def test_a_pool_that_makes_its_workers_itself_keeps_the_callers_context() -> None:
    with PoolOfItsOwn(1) as pool:
        with span() as first:
            assert pool.apply(contract.current_span) == ids(first)
        with span() as second:
            assert pool.apply(contract.current_span) == ids(second)
        assert pool.apply(contract.current_span) is None


@pytest.mark.parametrize("way", ["apply_async", "map_async", "map of nothing", "imap"])
@pytest.mark.usefixtures("both_plugins")
def test_a_result_that_is_kept_does_not_keep_the_submitters_span(way: str) -> None:
    with ThreadPool(1) as pool:
        with span() as submitter:
            if way == "apply_async":
                result: Any = pool.apply_async(abs, (7,), callback=repr)
            elif way == "imap":
                result = pool.imap(abs, [7, 8])
            else:
                result = pool.map_async(abs, [] if "nothing" in way else [7, 8], callback=repr)
        list(result) if way == "imap" else result.get(60)
        pool.apply(abs, (9,))
        freed = weakref.ref(submitter)
        del submitter
        contract_poll(lambda: freed() is None)
        assert type(result._job) is int


def contract_poll(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        gc.collect()
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("not in 20 seconds")


@pytest.mark.usefixtures("both_plugins")
@pytest.mark.parametrize("chunksize", [1, 2])
@pytest.mark.parametrize("way", ["imap", "imap_unordered"])
def test_a_lazy_iterable_is_gone_through_in_the_context_of_the_submitter(way: str, chunksize: int) -> None:
    seen: list[Any] = []

    def lazy() -> Iterator[int]:
        for number in range(3):
            seen.append(contract.current_span())
            yield number
        contract.leave_a_span_attached()

    with ThreadPool(1) as pool:
        with waiting(pool), span() as submitter:
            results = getattr(pool, way)(abs, lazy(), chunksize)
        assert sorted(results) == [0, 1, 2]
        assert seen == [ids(submitter)] * 3
        assert list(pool.imap(bool, (contract.context_is_empty() for _ in "a"))) == [True]


@pytest.mark.usefixtures("both_plugins")
@pytest.mark.parametrize("iterable", [7, [1, "x"]], ids=["no iterable", "an item that fails"])
def test_what_is_wrong_with_an_iterable_is_said_as_without_the_agent(iterable: Any) -> None:
    def error_of(pool: Any) -> str:
        with pytest.raises(TypeError) as raised:
            list(pool.imap(abs, iterable))
        return str(raised.value)

    with ThreadPool(1) as pool:
        without_span = error_of(pool)
        with span():
            assert error_of(pool) == without_span


def write_whether_clean(path: str) -> None:
    with open(path, "a") as file:
        file.write(f"{contract.context_is_empty()} ")


@each_pool
@pytest.mark.usefixtures("both_plugins")
def test_a_pools_initializer_belongs_to_nobody(make_pool: Submit, tmp_path: Path) -> None:
    path = str(tmp_path / "seen")
    with span() as submitter, make_pool(write_whether_clean, (path,)) as pool:
        assert pool.apply(contract.current_span) == ids(submitter)
    assert Path(path).read_text() == "True "


@pytest.mark.usefixtures("both_plugins")
def test_a_managers_process_belongs_to_nobody(tmp_path: Path) -> None:
    path = str(tmp_path / "seen")
    with span():
        manager = BaseManager(ctx=multiprocessing.get_context("fork"))
        manager.start(write_whether_clean, (path,))
        manager.shutdown()
    assert Path(path).read_text() == "True "


class Monitor(multiprocessing.get_context("fork").Process):  # type: ignore[misc,name-defined]
    """A process of the program's own."""

    def run(self) -> None:
        write_whether_clean(self.path)


@pytest.mark.parametrize(
    ("detached", "clean"),
    [([__name__], True), ([f"{__name__}.Monitor"], True), ([f"{__name__}.Mon"], False), ([], False)],
)
def test_a_process_that_is_configured_as_detached_belongs_to_nobody(
    detached: list[str], clean: bool, tmp_path: Path
) -> None:
    with installed(plugin, detached=detached), span():
        process = Monitor()
        process.path = str(tmp_path / "seen")
        process.start()
        process.join()
    assert (tmp_path / "seen").read_text() == f"{clean} "


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_starting_a_process_leaves_the_object_as_it_would_be(method: str) -> None:
    def started() -> set[str]:
        process = multiprocessing.get_context(method).Process(target=abs, args=(7,), name="P")
        process.start()
        process.join()
        assert process.exitcode == 0
        return set(vars(process))

    plain = started()
    with installed(plugin), span():
        assert started() == plain


def test_a_process_is_started_once_only() -> None:
    with installed(plugin), span():
        process = multiprocessing.get_context("fork").Process(target=abs, args=(7,))
        process.start()
        with pytest.raises(AssertionError, match="cannot start a process twice"):
            process.start()
        process.join()


def test_what_is_sent_ahead_can_be_read_by_an_interpreter_without_the_agent() -> None:
    with installed(plugin), span() as submitter:
        data = spawn.get_preparation_data("P")
    (carrier, taken_at) = data["sw_agent"]
    assert carrier["traceparent"].split("-")[1:3] == [f"{ids(submitter)[0]:032x}", f"{ids(submitter)[1]:016x}"]
    assert {type(part) for part in (carrier, taken_at, *carrier, *carrier.values())} == {dict, int, str}


def test_nothing_is_sent_ahead_where_nothing_is_current() -> None:
    plain = spawn.get_preparation_data("P")
    with installed(plugin):
        assert spawn.get_preparation_data("P") == plain


def test_the_number_of_a_job_is_the_plain_number_to_everybody_and_goes_back_as_one() -> None:
    with installed(plugin), span() as submitter:
        job = Job(7, capture())
    assert (job, hash(job), f"{job} {job!r}") == (7, hash(7), "7 7")
    received = pickle.loads(pickle.dumps(job))
    assert (received, ids(trace.get_current_span(received.snapshot.context))) == (7, ids(submitter))
    assert received.snapshot.taken_at == job.snapshot.taken_at
    assert type(pickle.loads(pickle.dumps(received))) is int


def test_tasks_submitted_where_nothing_is_current_carry_a_plain_number() -> None:
    with installed(plugin), ThreadPool(1) as pool, waiting(pool):
        assert type(pool.apply_async(abs, (7,))._job) is int  # type: ignore[attr-defined]
        assert type(pool.map_async(abs, [7])._job) is int  # type: ignore[attr-defined]
