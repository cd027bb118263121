"""What happens to an order after it was taken, in a Celery worker; each task tells the storefront by HTTP."""

import asyncio
import os
import time
from pathlib import Path

import broker
from aiohttp import ClientSession
from celery import Celery, Task
from celery.signals import worker_ready

STOREFRONT = f"http://127.0.0.1:{os.environ['STOREFRONT_PORT']}"
FOLDER = Path(os.environ["SHOP_FOLDER"])

app = Celery("tasks", broker=os.environ["SHOP_REDIS"])
app.conf.update(broker_connection_retry_on_startup=True, task_default_queue="shop", task_ignore_result=True)
if not os.environ["SHOP_REDIS"]:
    app.conf.update(broker.settings(FOLDER))


@worker_ready.connect
def say_ready(**_: object) -> None:
    (FOLDER / "worker is ready").touch()


@app.task(bind=True)
def charge(self: Task, number: str, total: float) -> str:
    if self.request.retries == 0:
        raise self.retry(countdown=0.1, exc=TimeoutError(f"the bank does not answer about {total:.2f}"))
    time.sleep(0.03)
    tell_storefront(number, "charged")
    return number


@app.task
def pack(number: str) -> str:
    time.sleep(0.04)
    tell_storefront(number, "packed")
    return number


@app.task
def ship(number: str) -> None:
    time.sleep(0.02)
    tell_storefront(number, "shipped")


@app.task
def notify_customer(number: str) -> None:
    time.sleep(0.03)
    tell_storefront(number, "customer notified")


@app.task
def notify_courier(number: str) -> None:
    tell_storefront(number, "courier not reached")
    raise ConnectionError("the courier's line is busy")


def tell_storefront(number: str, event: str) -> None:
    asyncio.run(post(f"{STOREFRONT}/orders/{number}/events", event))


async def post(url: str, text: str) -> None:
    async with ClientSession() as session, session.post(url, data=text) as response:
        response.raise_for_status()
