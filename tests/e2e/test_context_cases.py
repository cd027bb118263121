"""Small whole programs under `sw-python run`: what each prints says whose context its work ran in."""

import subprocess
from pathlib import Path

import pytest

from launched import SW_PYTHON, own_environ

PRELUDE = """
import sys
from opentelemetry import trace
S = trace.get_tracer("case").start_as_current_span

def cur(*_):
    span = trace.get_current_span()
    return getattr(span, "name", None) or (span_id() if span.get_span_context().is_valid else None)

def span_id():
    return f"{trace.get_current_span().get_span_context().span_id:x}"
"""

# name: (what it prints, the program)
CASES = {
    "a_thread_subclass_with_its_own_run": (
        "submitter",
        """
import threading
class Worker(threading.Thread):
    def run(self): print(cur())
with S("submitter"):
    worker = Worker()
    worker.start()
worker.join()
""",
    ),
    "a_thread_built_in_one_request_and_started_in_another": (
        "B",
        """
import threading
with S("A"): thread = threading.Thread(target=lambda: print(cur()))
with S("B"): thread.start()
thread.join()
""",
    ),
    "run_of_a_thread_called_directly_is_a_plain_call": (
        "outer",
        """
import threading
with S("outer"): threading.Thread(target=lambda: print(cur())).run()
""",
    ),
    "a_pool_created_in_the_first_request": (
        "1 2 None None",
        """
from concurrent.futures import ThreadPoolExecutor
with S("1"):
    pool = ThreadPoolExecutor(1)
    first = pool.submit(cur).result()
with S("2"): second = pool.submit(cur).result()
print(first, second, pool.submit(cur).result(), pool.submit(cur).result())
""",
    ),
    "a_pools_initializer_belongs_to_nobody": (
        "None 1",
        """
from concurrent.futures import ThreadPoolExecutor
seen = []
with S("1"):
    with ThreadPoolExecutor(1, initializer=lambda: seen.append(cur())) as pool:
        first = pool.submit(cur).result()
print(seen[0], first)
""",
    ),
    "a_wrong_submit_raises_the_librarys_own_error": (
        "TypeError",
        """
from concurrent.futures import ThreadPoolExecutor
with S("1"), ThreadPoolExecutor(1) as pool:
    try: pool.submit(fn=print)
    except Exception as error: print(type(error).__name__)
""",
    ),
    "other_context_variables_behave_natively": (
        "1 28",
        """
import contextvars, decimal
from concurrent.futures import ThreadPoolExecutor
v = contextvars.ContextVar("v", default=0)
with S("1"), ThreadPoolExecutor(1, initializer=lambda: v.set(1)) as pool:
    decimal.getcontext().prec = 5
    print(pool.submit(v.get).result(), pool.submit(lambda: decimal.getcontext().prec).result())
""",
    ),
    "a_thread_pool_of_multiprocessing": (
        "A B None",
        """
from multiprocessing.pool import ThreadPool
with S("A"):
    pool = ThreadPool(1)
    first = pool.apply(cur)
with S("B"): second = pool.apply(cur)
print(first, second, pool.apply(cur))
pool.terminate()
""",
    ),
    "a_custom_executor_given_to_run_in_executor": (
        "request",
        """
import asyncio, concurrent.futures, queue, threading
class Own(concurrent.futures.Executor):
    def __init__(self):
        self.items = queue.SimpleQueue()
        threading.Thread(target=self.work, daemon=True).start()
    def work(self):
        while True:
            future, fn, args = self.items.get()
            future.set_result(fn(*args))
    def submit(self, fn, *args):
        future = concurrent.futures.Future()
        self.items.put((future, fn, args))
        return future
async def main():
    with S("request"):
        print(await asyncio.get_running_loop().run_in_executor(Own(), cur))
asyncio.run(main())
""",
    ),
    "the_default_executor_of_asyncio": (
        "A B None",
        """
import asyncio
async def main():
    loop = asyncio.get_running_loop()
    with S("A"): first = await loop.run_in_executor(None, cur)
    with S("B"): second = await loop.run_in_executor(None, cur)
    print(first, second, await loop.run_in_executor(None, cur))
asyncio.run(main())
""",
    ),
    "a_fork_pool_gives_each_item_its_own_submitter": (
        "True True False",
        """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
with S("R1"): first = pool.submit(span_id).result() == span_id()
with S("R2"): second = pool.submit(span_id).result() == span_id()
print(first, second, pool.submit(span_id).result() != "0")
pool.shutdown()
""",
    ),
    "a_task_cancelled_before_its_first_step_is_silent": (
        "done",
        """
import asyncio, gc
async def work(): pass
async def main():
    with S("request"):
        task = asyncio.create_task(work())
        task.cancel()
        try: await task
        except asyncio.CancelledError: pass
asyncio.run(main())
gc.collect()
print("done")
""",
    ),
    "a_raw_thread": (
        "caller",
        """
import _thread
lock = _thread.allocate_lock()
lock.acquire()
def work():
    print(cur())
    lock.release()
with S("caller"): _thread.start_new_thread(work, ())
lock.acquire()
""",
    ),
    "a_callback_belongs_to_who_registered_it": (
        "registrar registrar None",
        """
from concurrent.futures import ThreadPoolExecutor
import threading
seen, go, pool = [], threading.Event(), ThreadPoolExecutor(1)
with S("submitter"):
    future = pool.submit(go.wait)
    other = pool.submit(int)
with S("registrar"):
    future.add_done_callback(lambda _: seen.append(cur()))
other.add_done_callback(lambda _: seen.append(cur()))
go.set()
pool.shutdown()
with S("registrar"): future.add_done_callback(lambda _: seen.insert(1, cur()))
print(*seen)
""",
    ),
    "a_timer_and_work_whose_submitter_has_ended": (
        "submitter submitter",
        """
import threading
done = threading.Event()
release = threading.Event()
with S("submitter"):
    timer = threading.Timer(0, lambda: (release.wait(), print(cur(), end=" "), done.set()))
    timer.start()
    thread = threading.Thread(target=lambda: (done.wait(), print(cur())))
    thread.start()
release.set()
thread.join()
""",
    ),
    "a_queue_is_no_call": (
        "producer None",
        """
import queue, threading
items = queue.Queue()
seen = []
consumer = threading.Thread(target=lambda: seen.append((items.get()(), cur())))
consumer.start()
with S("producer"):
    name = cur()
    items.put(lambda: None)
consumer.join()
print(name, seen[0][1])
""",
    ),
    "what_an_item_leaves_behind_is_not_seen_by_the_next": (
        "None",
        """
from concurrent.futures import ThreadPoolExecutor
from opentelemetry import context
pool = ThreadPoolExecutor(1)
def leak():
    context.attach(trace.set_span_in_context(trace.get_tracer("x").start_span("leaked")))
pool.submit(leak).result()
print(pool.submit(cur).result())
""",
    ),
    "threads_that_gevent_makes_greenlets_of": (
        "a a a; b b b; None None None",
        """
from gevent import monkey; monkey.patch_all()
import _thread, threading
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
pool = ThreadPoolExecutor(1)
def seen():
    answers = Queue()
    ask = lambda: answers.put(cur())
    threading.Thread(target=ask).start()
    thread = answers.get()
    _thread.start_new_thread(ask, ())
    return f"{thread} {answers.get()} {pool.submit(cur).result()}"
with S("a"): a = seen()
with S("b"): b = seen()
print(a, b, seen(), sep="; ")
""",
    ),
    "random_numbers_are_the_programs_own": (
        "[3, 1, 4, 1, 5] 0.6394267984578837",
        """
import random
random.seed(42)
with S("a"), S("b"): print([3, 1, 4, 1, 5], random.random())
""",
    ),
    "the_agents_threads_use_up_no_names": (
        "Thread-1 Thread-2 ThreadPoolExecutor-0_0",
        """
import threading
from concurrent.futures import ThreadPoolExecutor
with S("a"): pass
first = threading.Thread(target=int).name.split()[0]
with S("b"): pass
second = threading.Thread(target=int).name.split()[0]
print(first, second, ThreadPoolExecutor(1).submit(lambda: threading.current_thread().name).result())
""",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_work_runs_in_the_right_context(name: str, tmp_path: Path):
    expected, program = CASES[name]
    script = tmp_path / "case.py"
    script.write_text(PRELUDE + program)
    done = subprocess.run(
        [SW_PYTHON, "run", str(script)],
        env=own_environ(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.stdout.strip() == expected
    assert done.returncode == 0
