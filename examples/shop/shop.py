"""Open the shop: start its stock service, its storefront and its Celery worker, order twice, and close it again.

The broker is Redis where one answers (at REDIS_URL, by default on this machine), else a folder.
"""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import ClientSession

HERE = Path(__file__).parent
REDIS = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
WORKER = ("-m", "celery", "-A", "tasks", "worker", "--concurrency", "2", "--loglevel", "WARNING", "--without-mingle")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        redis = REDIS if answers(urlsplit(REDIS).hostname, urlsplit(REDIS).port or 6379) else ""
        ports = {"STOCK_PORT": str(free_port()), "STOREFRONT_PORT": str(free_port())}
        environ = {**os.environ, **ports, "SHOP_REDIS": redis, "SHOP_FOLDER": folder}
        print(f"the broker is {redis or folder}")
        with (
            service("stock", environ, "stock.py"),
            service("storefront", environ, "storefront.py"),
            service("worker", environ, *WORKER),
        ):
            storefront = f"http://127.0.0.1:{ports['STOREFRONT_PORT']}"
            wait_until(lambda: Path(folder, "worker is ready").exists())
            wait_until(lambda: all(answers("127.0.0.1", int(port)) for port in ports.values()))
            asyncio.run(order_twice(storefront))


@contextmanager
def service(name: str, environ: dict[str, str], *command: str) -> Iterator[None]:
    """Run a Python program as long as the `with` lasts; what it says is printed only if it fails."""
    log = Path(environ["SHOP_FOLDER"], f"{name}.log")
    environ = {**environ, "OTEL_SERVICE_NAME": name}
    with log.open("w") as output:
        process = subprocess.Popen([sys.executable, *command], cwd=HERE, env=environ, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        status = process.wait(30)
        if status:
            print(f"{name} ended with status {status}:\n{log.read_text()}", file=sys.stderr)


async def order_twice(storefront: str) -> None:
    async with ClientSession(storefront) as session:
        for items in (["espresso"], ["espresso", "flat white", "croissant"]):
            async with session.post("/orders", json={"items": items}) as response:
                async for line in response.content:
                    print(line.decode(), end="")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("a service has not started")
        time.sleep(0.05)


def answers(host: str | None, port: int) -> bool:
    with suppress(OSError), socket.create_connection((host, port), 1.0):
        return True
    return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


if __name__ == "__main__":
    main()
