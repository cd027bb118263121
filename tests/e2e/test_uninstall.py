"""`sw_agent.uninstall()`: the program goes on as if there had never been an agent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launched import PRELUDE, Launch, own_environ

IMPORTS = """
import asyncio, atexit, logging, logging.handlers, multiprocessing, os, signal, sys, threading, types, _thread
import concurrent.futures.process, concurrent.futures.thread
import multiprocessing.pool, multiprocessing.popen_forkserver, multiprocessing.popen_spawn_posix, multiprocessing.spawn
import aiohttp.web
import celery.app.trace, celery.beat, celery.worker.consumer, celery.worker.request
import gevent.pool, gevent.threadpool
import opentelemetry.context, opentelemetry.propagate, opentelemetry.sdk.resources, opentelemetry.sdk.trace
from opentelemetry import trace
"""

EVERYTHING = """
def everything():
    "Return all that modules, and the classes in them, have under a name."
    found = {}
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] in ("sw_agent", "sw_agent_plugins", "__main__", "__mp_main__"):
            continue
        for name, value in list(getattr(module, "__dict__", {}).items()):
            found[module_name, name] = value
            if isinstance(value, type) and value.__dict__.get("__module__") == module_name:
                for attribute, of_class in list(vars(value).items()):
                    found[module_name, name, attribute] = of_class
    return found

def is_of_the_agent(value):
    function = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
    return isinstance(function, types.FunctionType) and (
        "sw_agent" in function.__code__.co_filename or "__sw_itself__" in vars(function)
    )

def agents():
    return [place for place, value in everything().items() if is_of_the_agent(value)]
"""

USE = """
import concurrent.futures

tracer = trace.get_tracer("program")

def use():
    "Use what is patched, so that all of the agent comes into play."
    async def main():
        await asyncio.get_running_loop().run_in_executor(None, int)
    with tracer.start_as_current_span("outer"):
        threading.Thread(target=int).start()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(int).result()
        gevent.spawn(int).join()
        asyncio.run(main())
"""


def test_every_object_that_was_replaced_is_the_very_one_that_it_was(tmp_path: Path) -> None:
    code = f"""{IMPORTS}{EVERYTHING}
import sw_agent
from sw_agent import _bootstrap
{USE}
use()
before, finders, environ = everything(), list(sys.meta_path), dict(os.environ)
sw_agent.uninstall()  # of what is not there: nothing
_bootstrap.start()
assert len(agents()) > 60, agents()
assert sys.meta_path != finders
use()
sw_agent.uninstall()
now = everything()
print([place for place, value in before.items() if callable(value) and now.get(place) is not value])
print([place for place in now if is_of_the_agent(now[place])])
print(sys.meta_path == finders, dict(os.environ) == environ, trace._TRACER_PROVIDER)
print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, os.listdir("/proc/self/task") == [str(os.getpid())])
use()
"""
    (tmp_path / "app.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore", "app.py"],
        env=own_environ(tmp_path, SW_EXPORT_PATH=str(tmp_path / "traces.db")),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[]\n[]\nTrue True None\nTrue True\n", "")


def test_so_it_is_where_the_agent_was_there_first(launch: Launch) -> None:
    """Also under the names that libraries have bound to what had been replaced already, and for the children."""
    app = launch(
        f"""{IMPORTS}{EVERYTHING}{USE}
import subprocess, warnings

def says_whether_it_is_traced():
    code = "import sys; print('sw_agent' in sys.modules)"
    return subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True).stdout

def work(queue):
    with S("in a child"): queue.put(trace.get_current_span().is_recording())

if __name__ == "__main__":
    import sw_agent
    from signal import signal as bound_here
    use()
    print(len(agents()) > 60, says_whether_it_is_traced().strip(), os.environ["TRACEPARENT"] != "given")
    open_span = tracer.start_span("open")
    with S("around"):
        threads = [threading.Thread(target=sw_agent.uninstall) for _ in range(3)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        sw_agent.uninstall()
    open_span.end()
    greenlets = [gevent.Greenlet, gevent.greenlet.Greenlet, gevent.pool.Group.greenlet_class, gevent.spawn.__self__]
    print(agents(), set(greenlets) == {{gevent._gevent_cgreenlet.Greenlet}})
    print(bound_here is signal.signal, is_of_the_agent(bound_here))
    print([type(finder).__module__ for finder in sys.meta_path if "sw_agent" in type(finder).__module__])
    print(says_whether_it_is_traced().strip(), "PYTHONPATH" in os.environ, os.environ["TRACEPARENT"])
    print(type(tracer).__name__, trace.get_current_span().is_recording(), len(os.listdir("/proc/self/task")))
    use()
    warnings.simplefilter("error")
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        queue = context.SimpleQueue()
        child = context.Process(target=work, args=(queue,))
        child.start(); print(queue.get(), end=" "); child.join()
    print()
    del context, queue, child
    import gc; gc.collect()
    os.kill(os.getpid(), signal.SIGTERM)
""",
        "--program-span",
        TRACEPARENT="given",
    )
    out = app.end(expected=-15)
    assert out.splitlines() == [
        "True True True",
        "[] True",
        "True False",
        "[]",
        "False False given",
        "ProxyTracer False 1",
        "False False False ",
    ]
    assert app.names() == ["-c", "app.py", "around", "open", "outer"]


@pytest.mark.parametrize("early", [True, False], ids=["set before", "set afterwards"])
def test_the_programs_own_provider_stays_and_is_followed_by_all_tracers(launch: Launch, early: bool) -> None:
    app = launch(
        """
import sw_agent
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
def own():
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)

if EARLY: own()
agents = trace.get_tracer_provider()
with S("before"): pass
sw_agent.uninstall()
with S("between"): pass
if not EARLY: own()
with S("after"), agents.get_tracer("of the agent's").start_as_current_span("inside"): pass
print([span.name for span in exporter.get_finished_spans()])
""",
        prelude=f"EARLY = {early}\n{PRELUDE}",
    )
    assert app.end() == f"{['before', 'between', 'inside', 'after'] if early else ['inside', 'after']}\n"
    assert app.names() == ["before"]


SPANS = {
    f"SW_PLUGIN_{name}_SPANS": "true"
    for name in ("THREADING", "CONCURRENT_FUTURES", "MULTIPROCESSING", "GEVENT", "ASYNCIO_TASK")
}


@pytest.mark.parametrize("settings", [{}, SPANS], ids=["without spans", "with spans"])
def test_work_that_is_under_way_ends_well(launch: Launch, settings: dict[str, str]) -> None:
    """Items that wait in pools, running ones, callbacks, tasks, and a request between an aiohttp client and server."""
    app = launch(
        """
import asyncio, multiprocessing, multiprocessing.pool, threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
import aiohttp, gevent
from aiohttp import web
import sw_agent

go_on = threading.Event()

class Work(threading.Thread):
    def run(self):
        with S("in a thread"): self.result = go_on.wait(30)

async def handler(request):
    with S("in the handler"):
        arrived.set()
        await going_on.wait()
        task = asyncio.create_task(asyncio.sleep(0, "task"))
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write((await task).encode())
        await response.write_eof()
        return response

async def served():
    global arrived, going_on
    arrived, going_on = asyncio.Event(), asyncio.Event()
    application = web.Application()
    application.router.add_get("/", handler)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = "http://127.0.0.1:%d/" % site._server.sockets[0].getsockname()[1]
    async def get(session):
        async with session.get(url) as response:
            return response.status, await response.text(), sorted(response.request_info.headers)[-1]
    async with aiohttp.ClientSession() as session:
        with S("client"):
            getting = asyncio.create_task(get(session))
            waiting = asyncio.get_running_loop().run_in_executor(None, go_on.wait, 30)
        await arrived.wait()
        await asyncio.to_thread(uninstall)
        going_on.set()
        go_on.set()
        print(await getting, await waiting)
        print(await get(session))
    await runner.cleanup()

def uninstall():
    sw_agent.uninstall()

def later(result):
    called.append(result)

if __name__ == "__main__":
    called = []
    threads, processes, pool = ThreadPoolExecutor(1), ProcessPoolExecutor(1), multiprocessing.pool.ThreadPool(1)
    forked = multiprocessing.Pool(1)
    with S("submitting"):
        calls = (go_on.wait, 30), *((divmod, n, 2) for n in range(4)), (divmod, 1, 0)
        items = [threads.submit(*call) for call in calls]
        items[1].add_done_callback(lambda future: called.append(future.result()))
        in_processes = [processes.submit(divmod, n, 2) for n in range(6)]
        jobs = [pool.apply_async(go_on.wait, (30,), callback=later), pool.map_async(abs, range(3), callback=later)]
        mapped, imap = forked.map_async(abs, range(9)), forked.imap(abs, range(9))
        work, timer = Work(), threading.Timer(0.05, later, ["timer"])
        work.start(), timer.start()
        greenlet = gevent.spawn(divmod, 7, 2)
        greenlet.link(lambda greenlet: called.append("linked"))
    asyncio.run(served())
    print([item.exception() or item.result() for item in items])
    print([item.result() for item in in_processes], [job.get(30) for job in jobs], mapped.get(30), list(imap))
    work.join(), timer.join(), greenlet.join()
    print(work.result, greenlet.value)
    threads.shutdown(), processes.shutdown()
    for each in pool, forked: each.close(), each.join()
    print(sorted(map(str, called)))
""",
        **settings,
    )
    assert app.end().splitlines() == [
        "(200, 'task', 'traceparent') True",
        "(200, 'task', 'User-Agent')",
        "[True, (0, 0), (0, 1), (1, 0), (1, 1), ZeroDivisionError('integer division or modulo by zero')]",
        f"{[divmod(n, 2) for n in range(6)]} [True, [0, 1, 2]] {list(range(9))} {list(range(9))}",
        "True (3, 1)",
        "['(0, 0)', 'True', '[0, 1, 2]', 'linked', 'timer']",
    ]
    assert app.names().count("in the handler") == app.names().count("client") == 1
