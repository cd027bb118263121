"""The daily report of a coffee bar: fetch, parse, enrich and render, each in the kind of worker that suits it.

An ordinary program that makes spans with the OpenTelemetry API, and knows nothing of an agent. Its work goes through a
thread, a thread pool, a process pool, asyncio tasks, an event loop's executor and a process. `time.sleep` stands for
the network and for the work.
"""

import asyncio
import multiprocessing
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

from opentelemetry import trace

tracer = trace.get_tracer("report")

SOURCES = {
    "orders": (0.20, "espresso,41\nflat white,27\nlatte,63"),
    "ratings": (0.30, "espresso,4.6\nflat white,4.4\nlatte,4.8"),
    "returns": (0.15, "latte,2\nespresso,?"),
}


class PriceList(threading.Thread):
    """Loads the prices while the rest goes on."""

    def __init__(self):
        super().__init__(name="price-list")
        self.prices = {}

    def run(self):
        with tracer.start_as_current_span("load prices"):
            time.sleep(0.25)
            self.prices.update({"espresso": 2.4, "flat white": 3.6, "latte": 3.8})


def fetch(source):
    seconds, body = SOURCES[source]
    with tracer.start_as_current_span(f"fetch {source}", attributes={"source": source}):
        time.sleep(seconds)
        return body


def parse(source, body):
    with tracer.start_as_current_span(f"parse {source}", attributes={"lines": body.count("\n") + 1}):
        time.sleep(0.04 * body.count("\n"))
        rows = (line.split(",") for line in body.splitlines())
        return {product: float(value) for product, value in rows}


def supplier(product):
    with tracer.start_as_current_span("find supplier"):
        time.sleep(0.12)
        return {"latte": "Dairy & Daughters"}.get(product, "Nordic Beans")


async def enrich(product, sold, price):
    with tracer.start_as_current_span(f"enrich {product}"):
        await asyncio.sleep(0.05)
        name = await asyncio.get_running_loop().run_in_executor(None, supplier, product)
        return f"{product:<10} {sold:3.0f} sold {sold * price:7.2f} EUR  {name}"


async def enrich_all(orders, prices):
    with tracer.start_as_current_span("enrich"):
        tasks = [asyncio.create_task(enrich(product, sold, prices[product])) for product, sold in orders.items()]
        return await asyncio.gather(*tasks)


def render(lines, results):
    with tracer.start_as_current_span("render"):
        with tracer.start_as_current_span("lay out"):
            time.sleep(0.08)
        with tracer.start_as_current_span("write"):
            time.sleep(0.06)
            results.put("\n".join(lines))


def main():
    with tracer.start_as_current_span("daily report"):
        price_list = PriceList()
        price_list.start()
        with tracer.start_as_current_span("fetch"), ThreadPoolExecutor(2, thread_name_prefix="fetch") as pool:
            bodies = dict(zip(SOURCES, pool.map(fetch, SOURCES), strict=True))
        price_list.join()

        tables = {}
        with tracer.start_as_current_span("parse"), ProcessPoolExecutor(2) as processes:
            parsing = {source: processes.submit(parse, source, body) for source, body in bodies.items()}
            for source, future in parsing.items():
                try:
                    tables[source] = future.result()
                except ValueError as error:
                    print(f"left out {source}: {error}")

        lines = asyncio.run(enrich_all(tables["orders"], price_list.prices))

        results = multiprocessing.SimpleQueue()
        renderer = multiprocessing.Process(target=render, args=(lines, results))
        renderer.start()
        print(results.get())
        renderer.join()


if __name__ == "__main__":
    main()
