"""A program that hands work over in every usual way; what it prints does not depend on who traces it.

Into the file that it is given it writes, for each way, whether the work had the trace of its submitter.
"""

import asyncio
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import aiohttp
from aiohttp import web
from celery import Celery
from celery.contrib.testing.worker import start_worker
from opentelemetry import trace

span = trace.get_tracer("program").start_as_current_span
flows = {}


def current():
    return trace.get_current_span().get_span_context().trace_id


def saw(way, found):
    print(way)
    flows[way] = found == current()


class Own(threading.Thread):
    def run(self):
        self.found = current()


def use_threads():
    with ThreadPoolExecutor(1) as pool:
        for name in ("one", "two"):
            with span(name):
                thread = Own()
                thread.start()
                thread.join()
                saw(f"thread of {name}", thread.found)
                saw(f"pool of {name}", pool.submit(current).result())
        saw("pool of nobody", pool.submit(current).result())


async def look():
    await asyncio.sleep(0)
    return current()


async def answer(request):
    names = [name.lower() for name, _ in request.raw_headers]
    return web.json_response({"doubled": sorted({name.decode() for name in names if names.count(name) > 1})})


async def use_asyncio():
    app = web.Application()
    app.router.add_get("/answer", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    with span("request"):
        saw("task", await asyncio.create_task(look()))
        saw("executor", await asyncio.get_running_loop().run_in_executor(None, current))
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/answer"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            print(response.status, await response.json())
    await runner.cleanup()


def use_celery():
    app = Celery("program", broker="memory://", backend="cache+memory://")
    app.conf.update(broker_transport_options={"polling_interval": 0.01})

    @app.task(name="look")
    def task():
        return f"{current():x}"

    with start_worker(app, perform_ping_check=False), span("publisher"):
        for _ in range(2):
            saw("celery", int(task.delay().get(timeout=30), 16))


use_threads()
asyncio.run(use_asyncio())
use_celery()
with open(sys.argv[1], "w") as file:
    json.dump({"flows": flows, "traced": trace.get_tracer("program").start_span("end").is_recording()}, file)
sys.exit(3)
