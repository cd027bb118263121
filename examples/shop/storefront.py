"""The storefront: takes an order, asks the stock service for every item, and leaves the rest to Celery.

The answer to an order is a stream: a line for each thing that happens to it, until all of it is done.
"""

import asyncio
import itertools
import os
import time
from concurrent.futures import ThreadPoolExecutor

import tasks
from aiohttp import ClientSession, web
from celery import chain, group
from opentelemetry import trace

tracer = trace.get_tracer("storefront")
STOCK = f"http://127.0.0.1:{os.environ['STOCK_PORT']}"
EVENTS = {"charged", "packed", "shipped", "customer notified", "courier not reached"}

threads = ThreadPoolExecutor(2, "storefront")
numbers = itertools.count(1)
orders: dict[str, asyncio.Queue[str]] = {}


async def order(request: web.Request) -> web.StreamResponse:
    items = (await request.json())["items"]
    number = str(next(numbers))
    events = orders[number] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    async with ClientSession(STOCK) as session:
        prices = await asyncio.gather(*(asyncio.create_task(ask_price(session, item)) for item in items))
    total = await loop.run_in_executor(threads, add_up, prices)
    await loop.run_in_executor(threads, hand_over, number, total)

    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(f"order {number}: {total:.2f}\n".encode())
    missing = set(EVENTS)
    while missing:
        event = await events.get()
        missing.discard(event)
        await response.write(f"order {number}: {event}\n".encode())
    await response.write_eof()
    return response


async def ask_price(session: ClientSession, item: str) -> float:
    async with session.get(f"/items/{item}") as response:
        response.raise_for_status()
        return float((await response.json())["price"])


def add_up(prices: list[float]) -> float:
    with tracer.start_as_current_span("add up"):
        time.sleep(0.02)  # taxes
        return sum(prices)


def hand_over(number: str, total: float) -> None:
    """Publish what shall happen to the order; this talks to the broker, so it is no work for the event loop."""
    chain(tasks.charge.s(number, total), tasks.pack.s(), tasks.ship.s()).delay()
    group(tasks.notify_customer.s(number), tasks.notify_courier.s(number)).delay()


async def event(request: web.Request) -> web.Response:
    await orders[request.match_info["number"]].put(await request.text())
    return web.Response(status=204)


def application() -> web.Application:
    app = web.Application()
    app.router.add_post("/orders", order)
    app.router.add_post("/orders/{number}/events", event)
    return app


if __name__ == "__main__":
    web.run_app(application(), host="127.0.0.1", port=int(os.environ["STOREFRONT_PORT"]), print=None)
