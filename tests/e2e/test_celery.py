"""Real Celery workers of each pool under `sw-python run`, with a real Redis or RabbitMQ between them and clients."""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from launched import SW_PYTHON, own_environ
from services import rabbitmq_url, redis_url  # noqa: F401  fixtures
from sw_agent.export.store import StoredSpan, StoreError, read_trace, read_traces

pytest.importorskip("celery")

PROGRAM = """
import os, signal, sys, time
from celery import Celery, chord, chain, group
from celery.exceptions import SoftTimeLimitExceeded
from celery.signals import worker_ready
from opentelemetry import baggage, context, trace

S = trace.get_tracer("program").start_as_current_span
redis = os.environ["REDIS"]
prefix = os.environ["PREFIX"]
app = Celery("proj", broker=os.environ.get("BROKER", redis), backend=redis)
app.conf.update(
    task_default_queue=f"{prefix}default",
    broker_connection_retry_on_startup=True,
    broker_transport_options={} if "BROKER" in os.environ else {"global_keyprefix": prefix},
    result_backend_transport_options={"global_keyprefix": prefix},
    worker_enable_remote_control="BROKER" not in os.environ,
    worker_hijack_root_logger=False,
    beat_schedule={
        "often": {"task": "proj.pid", "schedule": 0.3, "options": {"queue": f"{prefix}{os.environ['NAME']}"}},
    },
    beat_schedule_filename=os.environ["NAME"] + ".beat",
    result_expires=60,
)

@worker_ready.connect
def ready(**_):
    open(os.environ["NAME"] + ".ready", "w").close()

@app.task(name="proj.add")
def add(x, y):
    with S("body"):
        return x + y

@app.task(name="proj.pid")
def pid():
    return os.getpid()

@app.task(name="proj.outer")
def outer(queue):
    add.apply_async((1, 1), queue=queue)

@app.task(name="proj.flaky", bind=True)
def flaky(self, times):
    if self.request.retries < times:
        raise self.retry(countdown=0)

@app.task(name="proj.leaks")
def leaks():
    found = len(context.get_current()), dict(baggage.get_all())
    context.attach(baggage.set_baggage("left", "behind", trace.set_span_in_context(trace.INVALID_SPAN)))
    return found

@app.task(name="proj.fails")
def fails():
    raise ValueError("on purpose")

@app.task(name="proj.waits")
def waits(started, seconds=60):
    with S("before"):
        open(started, "w").close()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not os.path.exists(f"{started}.go"):
        time.sleep(0.01)

@app.task(name="proj.killed")
def killed():
    with S("before"):
        pass
    os.kill(os.getpid(), signal.SIGKILL)

@app.task(name="proj.killed_once", bind=True, retry_on_worker_lost=True, default_retry_delay=0)
def killed_once(self):
    if not self.request.retries:
        os.kill(os.getpid(), signal.SIGKILL)

@app.task(name="proj.exits")
def exits():
    sys.exit(3)
"""
CLIENT = """
from proj import *
for line in sys.stdin:
    with S("publisher") as span:
        result = eval(line)
    print(getattr(result, "id", result), flush=True)
"""
WORDS_OF_TROUBLE = ("sw-python:", "Failed to detach", "opentelemetry")
if sys.version_info >= (3, 11):  # before, a frame of the agent's cannot be taken out of a traceback of Celery's
    WORDS_OF_TROUBLE += ("sw_agent",)


def until(condition: Callable[[], Any], what: str = "", seconds: float = 40) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not in {seconds} seconds: {what}"
        threading.Event().wait(0.05)
    return found


class Stage:
    """A folder with the program, and the processes that run it; they share a store, and a prefix of all names."""

    def __init__(self, folder: Path, redis: str, prefix: str) -> None:
        self.folder = folder
        self.prefix = prefix
        self.store = str(folder / "traces.db")
        (folder / "proj.py").write_text(PROGRAM)
        (folder / "client.py").write_text(CLIENT)
        self.environ = own_environ(
            folder,
            REDIS=redis,
            PREFIX=prefix,
            SW_EXPORT_TO="local",
            SW_EXPORT_PATH=self.store,
            SW_EXPORT_FLUSH_INTERVAL="0.05",
            SW_EXPORT_EXIT_TIMEOUT="30",  # however busy the machine is
            OTEL_SERVICE_NAME="proj",
        )
        self.stack = ExitStack()

    def start(self, name: str, *command: str, agent: bool = True, **environ: str) -> subprocess.Popen[str]:
        """Start a program, whose stderr goes to a file of its name."""
        with open(self.folder / f"{name}.err", "w") as err:
            process = subprocess.Popen(
                [*((SW_PYTHON, "run") if agent else ()), *command],
                cwd=self.folder,
                env={**self.environ, "NAME": name, **environ},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
            )
        self.stack.callback(self._end, process)
        return process

    def _end(self, process: subprocess.Popen[str]) -> None:
        with process:
            process.kill()  # a pool's processes go with it: PR_SET_PDEATHSIG

    def spans(self) -> list[StoredSpan]:
        try:
            traces = read_traces(self.store, limit=10**6) if os.path.exists(self.store) else []
            return [span for trace in traces for span in read_trace(self.store, trace.trace_id)]
        except StoreError as error:
            if "is empty" in str(error):  # a process is just creating it
                return []
            raise


class Worker:
    """A worker with a queue of its own."""

    def __init__(self, stage: Stage, name: str, *options: str, agent: bool = True, **environ: str) -> None:
        self.stage = stage
        self.name = name
        self.queue = f"{stage.prefix}{name}"
        quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "WARNING")
        command = ("celery", "-A", "proj", "worker", "-n", f"{name}@%h", "-Q", self.queue, *quiet, *options)
        self.process = stage.start(name, *command, agent=agent, **environ)

    def wait(self) -> Worker:
        """Wait until it is ready."""
        until(lambda: self.process.poll() is not None or (self.stage.folder / f"{self.name}.ready").exists(), self.name)
        assert self.process.poll() is None, self.err
        return self

    def wait_for_end(self) -> int:
        """Wait until it has ended, and return its exit status."""
        return self.process.wait(30)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send it a signal, wait until it has ended, and return its exit status."""
        self.process.send_signal(number)
        return self.wait_for_end()

    @property
    def err(self) -> str:
        return (self.stage.folder / f"{self.name}.err").read_text()


class Client:
    """A program that publishes what it is told, each line in a span of its own."""

    def __init__(self, stage: Stage, name: str, *, agent: bool = True, **environ: str) -> None:
        self.stage = stage
        self.process = stage.start(name, "python", "client.py", agent=agent, **environ)

    def __call__(self, expression: str) -> str:
        """Return what the expression gives, of a result its id."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{expression}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@contextmanager
def open_stage(folder: Path, redis: str) -> Iterator[Stage]:
    import redis as client

    stage = Stage(folder, redis, f"sw-test-{uuid.uuid4().hex}-")
    try:
        with stage.stack:
            yield stage
    finally:
        with client.Redis.from_url(redis) as connection:
            keys = list(connection.scan_iter(f"{stage.prefix}*", count=10_000))
            if keys:
                connection.delete(*keys)


def attempts(stage: Stage, task_id: str, count: int = 1) -> list[StoredSpan]:
    """Return the spans of the attempts at a task, in the order of their beginnings; there must be so many."""

    def find() -> list[StoredSpan]:
        found = [
            span
            for span in stage.spans()
            if span.attributes.get("messaging.message.id") == task_id and span.kind == "CONSUMER"
        ]
        return found if len(found) >= count else []

    found = until(find, f"{count} attempts at {task_id}")
    assert len(found) == count, found
    return sorted(found, key=lambda span: span.start_ns)


def path(stage: Stage, span: StoredSpan) -> list[str]:
    """Return the names from a span to its root."""
    by_id = {each.span_id: each for each in stage.spans()}
    names = [span.name]
    while span.parent_id:
        span = by_id[span.parent_id]
        names.append(span.name)
    return names


def states(spans: list[StoredSpan]) -> list[str]:
    return [span.attributes["celery.state"] for span in spans]


GREENLETS = ["gevent", "eventlet"]
POOLS = ["prefork", "solo", "threads", *(name for name in GREENLETS if importlib.util.find_spec(name) is not None)]
each_pool = pytest.mark.parametrize("pool", POOLS)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Stage]:  # noqa: F811
    with open_stage(tmp_path_factory.mktemp("celery"), redis_url) as stage:
        yield stage


@pytest.fixture(scope="module")
def client(stage: Stage) -> Client:
    return Client(stage, "client")


@pytest.fixture(scope="module")
def workers(stage: Stage) -> dict[str, Worker]:
    """One worker of each pool, and one without the agent; all that the tests need are started at once."""
    found = {pool: Worker(stage, pool, "-P", pool, "-c", "1" if pool == "prefork" else "2") for pool in POOLS}
    found["plain"] = Worker(stage, "plain", "-P", "solo", agent=False)
    return {name: worker.wait() for name, worker in found.items()}


@each_pool
def test_a_task_is_the_child_of_its_publication_in_another_process(
    stage: Stage, client: Client, workers: dict[str, Worker], pool: str
) -> None:
    queue = workers[pool].queue
    ids = [client(f"add.apply_async((1, 2), queue={queue!r})") for _ in range(2)]
    traces = set()
    for task_id in ids:
        (attempt,) = attempts(stage, task_id)
        assert path(stage, attempt) == ["process proj.add", "publish proj.add", "publisher"]
        body = until(lambda: [s for s in stage.spans() if s.parent_id == attempt.span_id])  # noqa: B023
        assert [span.name for span in body] == ["body"]
        assert attempt.attributes["messaging.destination.name"] == queue
        assert attempt.attributes["sw.wait_ms"] > 0
        traces.add(attempt.trace_id)
    assert len(traces) == 2


@each_pool
def test_a_worker_is_clean_after_each_task(stage: Stage, client: Client, workers: dict[str, Worker], pool: str) -> None:
    queue = workers[pool].queue
    for _ in range(3):
        assert client(f"leaks.apply_async(queue={queue!r}).get(timeout=30)") == "[1, {}]"
    task_id = client(f"outer.apply_async(({queue!r},), queue={queue!r})")
    (outer,) = attempts(stage, task_id)
    inner = until(lambda: [s for s in stage.spans() if s.trace_id == outer.trace_id and s.name == "process proj.add"])
    names = ["process proj.add", "publish proj.add", "process proj.outer", "publish proj.outer", "publisher"]
    assert path(stage, inner[0]) == names


@each_pool
def test_attempts_are_siblings_in_every_pool(
    stage: Stage, client: Client, workers: dict[str, Worker], pool: str
) -> None:
    task_id = client(f"flaky.apply_async((2,), queue={workers[pool].queue!r})")
    first, second, third = attempts(stage, task_id, 3)
    assert states([first, second, third]) == ["RETRY", "RETRY", "SUCCESS"]
    assert len({span.parent_id for span in (first, second, third)}) == 1
    assert [link["span_id"] for span in (second, third) for link in span.links] == [first.span_id, second.span_id]
    assert {span.status for span in (first, second, third)} == {"UNSET"}


@each_pool
def test_a_chain_and_a_chord_are_one_trace_in_every_pool(
    stage: Stage, client: Client, workers: dict[str, Worker], pool: str
) -> None:
    q = f"queue={workers[pool].queue!r}"
    add = f"add.s(1).set({q})"
    chained = client(f"chain(add.s(1, 2).set({q}), {add}, {add}).apply_async()")
    chorded = client(f"chord([add.s(1, 2).set({q}), add.s(3, 4).set({q})], pid.si().set({q})).apply_async()")
    (last,) = attempts(stage, chained)
    assert path(stage, last) == ["process proj.add", "publish proj.add"] * 3 + ["publisher"]
    (body,) = attempts(stage, chorded)
    assert path(stage, body)[-3:] == ["process proj.add", "publish proj.add", "publisher"]


@each_pool
def test_a_failure_is_said_by_the_attempt_in_every_pool(
    stage: Stage, client: Client, workers: dict[str, Worker], pool: str
) -> None:
    (failed,) = attempts(stage, client(f"fails.apply_async(queue={workers[pool].queue!r})"))
    assert (failed.status, failed.status_description) == ("ERROR", "ValueError: on purpose")
    assert [event["name"] for event in failed.events] == ["exception"]
    assert states([failed]) == ["FAILURE"]


# What only the main process of a worker knows


def test_a_process_that_is_killed_leaves_a_span_of_its_task(
    stage: Stage, client: Client, workers: dict[str, Worker]
) -> None:
    queue = workers["prefork"].queue
    for _ in range(2):
        task_id = client(f"killed.apply_async(queue={queue!r}, link_error=pid.si().set(queue={queue!r}))")
        (lost,) = attempts(stage, task_id)
        assert path(stage, lost) == ["process proj.killed", "publish proj.killed", "publisher"]
        assert lost.attributes["error.type"] == "billiard.exceptions.WorkerLostError"
        assert (lost.status, len(lost.events), *states([lost])) == ("ERROR", 1, "FAILURE")
        callback = until(lambda: [s for s in stage.spans() if s.parent_id == lost.span_id])  # noqa: B023
        assert callback[0].name == "publish proj.pid"


def test_what_the_main_process_retries_is_a_sibling_too(
    stage: Stage, client: Client, workers: dict[str, Worker]
) -> None:
    if not hasattr(importlib.import_module("celery").Task, "retry_on_worker_lost"):
        pytest.skip("Celery before 5.7 does not retry it")
    lost, done = attempts(stage, client(f"killed_once.apply_async(queue={workers['prefork'].queue!r})"), 2)
    assert states([lost, done]) == ["FAILURE", "SUCCESS"]
    assert (done.parent_id, [link["span_id"] for link in done.links]) == (lost.parent_id, [lost.span_id])


def test_a_task_that_takes_too_long_leaves_a_span_that_says_so(
    stage: Stage, client: Client, workers: dict[str, Worker]
) -> None:
    queue = workers["prefork"].queue
    q = f"queue={queue!r}, link_error=pid.si().set(queue={queue!r})"
    (hard,) = attempts(stage, client(f"waits.apply_async(('hard',), time_limit=1, {q})"))
    assert path(stage, hard) == ["process proj.waits", "publish proj.waits", "publisher"]
    assert hard.attributes["error.type"] == "billiard.exceptions.TimeLimitExceeded"
    assert (hard.status, len(hard.events), *states([hard])) == ("ERROR", 1, "FAILURE")
    assert hard.end_ns - hard.start_ns > 500_000_000
    callbacks = until(
        lambda: [s for s in stage.spans() if s.name == "publish proj.pid" and s.trace_id == hard.trace_id]
    )
    assert {span.parent_id for span in callbacks} == {hard.span_id}
    (soft,) = attempts(stage, client(f"waits.apply_async(('soft',), soft_time_limit=1, {q})"))
    assert soft.attributes["error.type"] == "billiard.exceptions.SoftTimeLimitExceeded"
    assert (soft.status, len(soft.events), *states([soft])) == ("ERROR", 1, "FAILURE")


def test_a_task_that_is_terminated_leaves_a_span_that_says_so(
    stage: Stage, client: Client, workers: dict[str, Worker]
) -> None:
    queue = workers["prefork"].queue
    task_id = client(f"waits.apply_async(('terminated',), queue={queue!r})")
    until((stage.folder / "terminated").exists)
    client(f"app.control.revoke({task_id!r}, terminate=True)")
    (revoked,) = attempts(stage, task_id)
    assert path(stage, revoked) == ["process proj.waits", "publish proj.waits", "publisher"]
    assert (revoked.status, *states([revoked])) == ("UNSET", "REVOKED")
    assert revoked.attributes["celery.revoke_reason"] == "terminated"
    assert client(f"add.apply_async((1, 2), queue={queue!r}).get(timeout=30)") == "3"
    assert len(attempts(stage, task_id)) == 1


@pytest.mark.skipif("gevent" not in POOLS, reason="gevent is not installed")
def test_a_greenlet_that_is_ended_leaves_one_span_that_says_so(
    stage: Stage, client: Client, workers: dict[str, Worker]
) -> None:
    queue = workers["gevent"].queue
    if "terminate_job" in vars(importlib.import_module("celery.concurrency.gevent").TaskPool):  # not in Celery 5.3
        task_id = client(f"waits.apply_async(('killed',), queue={queue!r})")
        until((stage.folder / "killed").exists)
        client(f"app.control.revoke({task_id!r}, terminate=True)")
        (revoked,) = attempts(stage, task_id)
        assert (revoked.status, *states([revoked])) == ("UNSET", "REVOKED")
    (timed_out,) = attempts(stage, client(f"waits.apply_async(('timed',), queue={queue!r}, time_limit=1)"))
    assert (timed_out.status, *states([timed_out])) == ("ERROR", "FAILURE")


def test_a_task_that_ends_its_process_leaves_a_span_that_says_so(
    stage: Stage, client: Client, workers: dict[str, Worker]
) -> None:
    (exited,) = attempts(stage, client(f"exits.apply_async(queue={workers['prefork'].queue!r})"))
    assert (exited.status, exited.attributes["error.type"], *states([exited])) == ("ERROR", "SystemExit", "FAILURE")


# With and without the agent


def test_a_client_without_the_agent_and_a_worker_without_it_work(
    stage: Stage, client: Client, workers: dict[str, Worker]
) -> None:
    plain = Client(stage, "plain client", agent=False)
    queue = workers["prefork"].queue
    for _ in range(2):
        task_id = plain(f"add.apply_async((1, 2), queue={queue!r})")
        (attempt,) = attempts(stage, task_id)
        assert attempt.parent_id is None
        assert "sw.wait_ms" not in attempt.attributes
        assert client(f"add.apply_async((1, 2), queue={workers['plain'].queue!r}).get(timeout=30)") == "3"
        assert client(f"flaky.apply_async((1,), queue={workers['plain'].queue!r}).get(timeout=30)") == "None"


# Before Celery runs


def run(folder: Path, code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SW_PYTHON, "run", "python", "-c", code],
        cwd=folder,
        env=own_environ(folder, SW_EXPORT_TO="none", **environ),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_plugin_comes_with_celerys_app_and_not_before(tmp_path: Path) -> None:
    shown = "print('sw_agent_plugins.celery' in sys.modules, 'celery.app' in sys.modules)"
    done = run(tmp_path, f"import sys, celery, celery.exceptions; {shown}; celery.Celery; {shown}")
    assert (done.stdout, done.stderr) == ("False False\nTrue True\n", "")


def test_a_wrong_relation_is_said_before_the_program_starts(tmp_path: Path) -> None:
    done = run(tmp_path, "print(1)", SW_PLUGIN_CELERY_RELATIONS="reports.*=link, mails.*")
    assert (done.returncode, done.stdout) == (2, "")
    assert "SW_PLUGIN_CELERY_RELATIONS: 'mails.*' is no PATTERN=child or PATTERN=link" in done.stderr


# The life of a worker


def test_each_process_of_a_pool_delivers_before_it_ends(stage: Stage, client: Client) -> None:
    worker = Worker(stage, "once", "-P", "prefork", "-c", "1", "--max-tasks-per-child=1").wait()
    ids = [client(f"add.apply_async((1, 2), queue={worker.queue!r})") for _ in range(3)]
    found = [attempts(stage, task_id)[0] for task_id in ids]
    assert len({span.resource["process.pid"] for span in found}) == 3
    assert worker.stop() == 0


def test_beat_begins_a_trace_with_each_tick(stage: Stage) -> None:
    before = {span.span_id for span in stage.spans()}
    worker = Worker(stage, "embedded", "-P", "solo", "-B", "-s", "embedded.beat").wait()

    def ticks() -> list[StoredSpan]:
        mine = {"messaging.destination.name": worker.queue}.items()
        new = [span for span in stage.spans() if span.span_id not in before and mine <= span.attributes.items()]
        found = [span for span in new if span.kind == "CONSUMER"]
        return found if len(found) > 1 else []

    found = until(ticks)
    assert len({span.trace_id for span in found}) == len(found)
    assert {tuple(path(stage, span)) for span in found} == {("process proj.pid", "publish proj.pid")}
    worker.stop()


def test_beat_in_a_process_of_its_own_does_so_too(stage: Stage, workers: dict[str, Worker]) -> None:
    stage.start("threads", "celery", "-A", "proj", "beat", "-s", "alone.beat", SW_AGENT_PROGRAM_SPAN="true")

    def ticks() -> list[StoredSpan]:
        mine = {"messaging.destination.name": workers["threads"].queue, "celery.task_name": "proj.pid"}.items()
        found = [span for span in stage.spans() if mine <= span.attributes.items()]
        publications = [span for span in found if span.kind == "PRODUCER" and span.parent_id is None]
        return publications if len(publications) > 1 else []

    assert len({span.trace_id for span in until(ticks)}) > 1


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_that_is_told_to_end_finishes_and_delivers(stage: Stage, client: Client, pool: str) -> None:
    worker = Worker(stage, f"warm-{pool}", "-P", pool, "-c", "1").wait()
    started = f"warm-{pool}-started"
    task_id = client(f"waits.apply_async(({started!r},), queue={worker.queue!r})")
    until((stage.folder / started).exists)
    worker.process.send_signal(signal.SIGTERM)
    (stage.folder / f"{started}.go").touch()
    assert worker.wait_for_end() == 0
    (attempt,) = attempts(stage, task_id)
    assert (attempt.status, *states([attempt])) == ("UNSET", "SUCCESS")
    assert not any(word in worker.err for word in WORDS_OF_TROUBLE), worker.err


def test_a_worker_ends_as_fast_and_as_quietly_as_without_the_agent(stage: Stage, client: Client) -> None:
    took, said = {}, {}
    for name, agent in (("told", True), ("plainly-told", False)):
        worker = Worker(stage, name, "-P", "prefork", "-c", "2", agent=agent)
        worker.wait()
        assert client(f"add.apply_async((1, 2), queue={worker.queue!r}).get(timeout=30)") == "3"
        begin = time.monotonic()
        assert worker.stop() == 0
        took[agent], said[agent] = time.monotonic() - begin, worker.err
    assert said[True] == said[False]
    assert took[True] < took[False] * 3, took  # of Celery's own loops each waits for up to a second before it looks


def test_a_worker_that_is_told_to_end_at_once_says_what_it_left(stage: Stage, client: Client) -> None:
    worker = Worker(stage, "cold", "-P", "prefork", "-c", "1").wait()
    done = client(f"add.apply_async((1, 2), queue={worker.queue!r})")
    task_id = client(f"waits.apply_async(('cold-started',), queue={worker.queue!r})")
    until((stage.folder / "cold-started").exists)
    worker.stop(signal.SIGQUIT)
    (left,) = attempts(stage, task_id)
    assert path(stage, left) == ["process proj.waits", "publish proj.waits", "publisher"]
    assert states([left])[0] in ("RETRY", "FAILURE")  # Celery 5.5 and newer have it redelivered, older ones lose it
    assert states(attempts(stage, done)) == ["SUCCESS"]
    assert not any(word in worker.err for word in WORDS_OF_TROUBLE), worker.err


def test_rabbitmq_carries_the_context_too(stage: Stage, rabbitmq_url: str) -> None:  # noqa: F811
    import kombu

    worker = Worker(stage, "rabbit", "-P", "prefork", "-c", "1", BROKER=rabbitmq_url).wait()
    client = Client(stage, "rabbit client", BROKER=rabbitmq_url)
    try:
        for _ in range(2):
            task_id = client(f"flaky.apply_async((1,), queue={worker.queue!r})")
            first, second = attempts(stage, task_id, 2)
            assert path(stage, first) == ["process proj.flaky", "publish proj.flaky", "publisher"]
            assert (first.parent_id, second.links[0]["span_id"]) == (second.parent_id, first.span_id)
    finally:
        worker.stop()
        with kombu.Connection(rabbitmq_url) as connection:
            channel = connection.default_channel
            channel.queue_delete(worker.queue)
            channel.queue_delete(f"{stage.prefix}default")
            for name in (worker.queue, f"{stage.prefix}default"):
                channel.exchange_delete(name)


def test_no_worker_has_complained(stage: Stage, workers: dict[str, Worker]) -> None:
    """The last one: it stops them."""
    for worker in workers.values():
        worker.process.send_signal(signal.SIGTERM)
    for worker in workers.values():
        assert worker.wait_for_end() == 0
        assert not any(word in worker.err for word in WORDS_OF_TROUBLE), worker.err
